"""Device and precision, the ranks of torchrun and what they agree on, Ctrl-C, SIGTERM, a closed terminal."""

import contextlib
import ctypes
import datetime
import gc
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import FirstRankFailed, UserError, say

SHARED_BATCHES = 16  # so often several ranks ask each other whether to save or stop
# SIGHUP: the terminal or ssh was closed. SIGBREAK: Ctrl-Break on Windows, which ends a closed console's
# processes before Python can answer.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
STOPPING = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


def pick(name: str) -> torch.device:
    """The device `name`; `auto` is CUDA where it works, else the CPU. UserError if it cannot be had."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name}: torch finds none on this machine; use device=auto or device=cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return pick_cpu()
    number, devices = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= devices:
        raise UserError(
            f"torch finds {devices} CUDA devices; start no more processes than that with torchrun"
        )
    device = torch.device("cuda", number)
    if not (reason := cuda_fails(device)):
        return device
    wrong = f"{device} does not work with this torch ({reason}); see docs/first-run.md"
    if name == "cuda" or world_size() > 1:
        raise UserError(f"device={name}: {wrong}, or use device=cpu")
    say(f"note: {wrong}. The training takes the CPU")
    return pick_cpu()


def pick_cpu() -> torch.device:
    """The CPU, made ready to train on."""
    keep_memory()
    flush_denormals()
    if not torch.backends.mkldnn.is_available():
        torch.backends.nnpack.set_flags(False)  # what convolves there by default takes twice as long and more
    return torch.device("cpu")


def cuda_fails(device: torch.device) -> str:
    """Make a CUDA device the current one and try a small convolution there. What went wrong, or nothing.

    torch finds every card, also one that it holds no code for, such as a card too old for its CUDA.
    """
    try:
        torch.cuda.set_device(device)
        images, weight = torch.ones(1, 3, 8, 8, device=device), torch.ones(3, 3, 3, 3, device=device)
        F.conv2d(images, weight).sum().item()
    except Exception as error:  # of torch's own, not all are RuntimeErrors
        return next(iter(str(error).splitlines()), type(error).__name__)
    return ""


def keep_memory() -> None:
    """Let glibc keep the memory of tensors for the next step, which else starts with page faults.

    On a CPU `fast` trains at 1.09 times the speed so, in 1.02 times the memory. Elsewhere nothing happens.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # names of mallopt(3); 32 MiB is the most it takes
        ctypes.CDLL(None).mallopt(trim_threshold, 2**31 - 1)
        ctypes.CDLL(None).mallopt(mmap_threshold, 32 * 2**20)


def flush_denormals() -> None:
    """Take numbers below 1e-38 for 0, in this thread and those it starts from here on, so before torch's own.

    Weight decay brings channels that a network does not use down to such numbers, which slow many CPUs down:
    on a Xeon, after 300 epochs with weight decay 5e-4, a step of `accurate` took 2.5 times as long.
    """
    torch.set_flush_denormal(True)


def describe(device: torch.device) -> str:
    """The device in words, such as `cpu (2 threads)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"


def peak_memory(device: torch.device) -> float | None:
    """The most memory used so far, in GiB, of a CUDA device or by the process; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context for forward passes in bfloat16, or one that does nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16(device, precision))


def bfloat16(device: torch.device, precision: str) -> bool:
    """Whether to compute in bfloat16: for `auto` if the hardware multiplies it; else float32 is faster."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def seed(device: torch.device, number: int) -> None:
    """Seed what draws on the device. torch.manual_seed seeds every device, which takes 0.3 ms on a CPU."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(number)
    else:
        torch.manual_seed(number)


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes that torchrun started, if it did. Ranks above 0 print nothing in the block."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    patience = datetime.timedelta(days=7)  # the first rank may have to fetch the data
    dist.init_process_group(backend, timeout=patience)
    with contextlib.ExitStack() as stack:
        stack.callback(leave)
        if rank() > 0:
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
        yield


def leave() -> None:
    """Leave the other ranks. A thread of gloo's that outlives the interpreter can abort the process."""
    gc.collect()  # DistributedDataParallel, part of a cycle with its training, holds on to those threads
    dist.destroy_process_group()


def rank() -> int:
    """This process's number among those that train together."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shard() -> dict[str, int]:
    """Which share of each batch is this process's, as a Loader takes it."""
    return {"rank": rank(), "world": world_size()}


@contextlib.contextmanager
def first_rank_first() -> Iterator[None]:
    """The block runs on rank 0 before it does on the others, which wait as long as it takes.

    If it fails there, FirstRankFailed is raised on the others.
    """
    if rank() > 0:
        (failed,) = agree(0)
        if failed:
            raise FirstRankFailed
        yield
        return
    failed = 1
    try:
        yield
        failed = 0
    finally:
        agree(failed)


def agree(*numbers: int) -> list[int]:
    """For each number the largest that a rank gave. Travels over the CPU, so that no device is waited for."""
    if world_size() == 1:
        return list(numbers)
    largest = torch.tensor(numbers)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


def time_to_agree(batch: int) -> bool:
    """Whether the ranks ask each other after this batch: one alone always does, several now and then."""
    return world_size() == 1 or batch % SHARED_BATCHES == 0


def total(sums: Tensor) -> Tensor:
    """`sums` added up over all ranks, on the CPU."""
    sums = sums.to("cpu", copy=True)
    if world_size() > 1:
        dist.all_reduce(sums)
    return sums


def place(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, its weights in the memory order in which it is fast there.

    That is channels_last, as the images come. But where torch has no oneDNN, as on a Mac, a network with
    depthwise convolutions is two to five times as fast in the usual order, into which images are then put.
    """
    depthwise = any(
        isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels for layer in network.modules()
    )
    if device.type == "cpu" and depthwise and not torch.backends.mkldnn.is_available():
        network.register_forward_pre_hook(lambda _, inputs: inputs[0].contiguous())
        return network.to(device)
    return network.to(device, memory_format=torch.channels_last)


def ddp(network: nn.Module) -> nn.Module:
    """What to call for a forward pass after whose backward pass all ranks have the same gradients."""
    return nn.parallel.DistributedDataParallel(network) if world_size() > 1 else network


def cannot_compile(device: torch.device) -> str:
    """Why torch.compile does not work here, empty if it does.

    It needs a C compiler, on CUDA also Triton and a card of compute capability 7.0. Without them it fails at
    the first pass, so a small one is tried.
    """
    try:
        trial = torch.compile(lambda values: values.sin().sum(), dynamic=False)
        trial(torch.ones(1000, device=device, requires_grad=True)).backward()
    except Exception as error:  # torch raises what the compiler it calls tripped over
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    return ""


def compile_in_place(network: nn.Module, device: torch.device) -> None:
    """Let torch compile the network's passes; where it cannot, a line says why and nothing changes."""
    if reason := cannot_compile(device):
        say(f"note: torch.compile does not work here ({reason}); training goes on without it")
    else:
        network.compile(dynamic=False)


def broadcast_buffers(network: nn.Module) -> None:
    """Give all ranks the first one's BatchNorm statistics; theirs drift apart from pass to pass."""
    if world_size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


class StopSignal:
    """Between `listen` and `release` the first signal to stop is kept in `number`; a second ends the process.

    Not so under torchrun, which passes on what its workers have already received from the terminal. Signals
    belong to the main thread: in any other there are none to remember. What `nohup` has the process ignore
    stays ignored.
    """

    def __init__(self) -> None:
        self.number = 0
        self.before: dict[int, Any] = {}  # the handlers until now

    def listen(self) -> None:
        """From now on, remember."""
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if number.name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self.receive)

    def release(self) -> None:
        """Give the signals back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals."""
        if self.number and not dist.is_initialized():
            os._exit(128 + number)
        self.number = number
