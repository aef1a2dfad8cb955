"""The CUDA path without a GPU: training and testing on fake tensors, which have a device but no values.

It shows that the tensors of a step are all on one device, and that nothing in a step waits for the
device to hand a value over (`.item()`, `bool(tensor)`, `.cpu()`, masks of unknown size). It cannot show
that kernels exist, are right or fast, that memory suffices, what torch.compile makes of it, or what
several GPUs do. Nor does it run backward: autograd wants a real device for that, so gradients are put
in by hand.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import data
import model
import train
from harness import settings
from harness.metrics import Meter

SETTINGS = (
    "dataset=synthetic precision=bfloat16 whiten=false dropout=0.1 epochs=10 small_epochs=1 "
    "leave_out=0.5 autoaugment=true cutout=8 cutmix=0.3"
)


pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9) or not torch.backends.cuda.is_built(),
    reason="needs a CUDA build of torch 2.9 or newer: others want a CUDA device even for fake tensors",
)


class Waited(Exception):
    """A value was asked for that only the device knows."""


class NoWaiting(TorchDispatchMode):
    """Refuses every operation that takes something from the device to the CPU, or the other way."""

    suspended = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = set() if self.suspended else kinds((args, kwargs))
        if "cuda" in before and func is torch.ops.aten._local_scalar_dense.default:
            raise Waited("a value")
        result = func(*args, **(kwargs or {}))
        if "cuda" in before and "cpu" in kinds(result) or "cpu" in before and "cuda" in kinds(result):
            raise Waited(str(func))
        return result


def kinds(values):
    """The kinds of devices that the tensors among nested values are on."""
    return {leaf.device.type for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)}


def place(network, device, memory_format=None):
    """As nn.Module.to, which fake parameters do not allow: torch would have to swap them."""
    for module in network.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(weight.detach().to(device), weight.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))
    return network


@pytest.fixture
def fake(monkeypatch):
    """A Training whose every tensor is on a CUDA device that is not there."""
    monkeypatch.setattr(nn.Module, "to", place)
    monkeypatch.setattr(model, "refusal", lambda *_: "")
    # deepcopy looks at the memory of a tensor, and a fake one has none.
    monkeypatch.setattr(train.copy, "deepcopy", lambda network: place(model.build("fast"), "cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    numbers, shape = torch.arange(300), (300, 3, 32, 32)
    images = torch.zeros(shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    info = data.Info("fake", list("0123456789"), [0.5] * 3, [0.25] * 3, 300, 300, "test")
    asked = settings.read(SETTINGS.split())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        split = data.Split(mode.from_tensor(images), mode.from_tensor(numbers % 10))
        training = train.Training(asked, data.Dataset(info, split, split), torch.device("cuda"))
        training.optimizer.param_groups[0]["fused"] = False  # torch has no fake kernel for it

        def backward(loss):
            assert loss.requires_grad
            for weight in training.network.parameters():
                weight.grad = torch.zeros_like(weight)

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        # What is asked for once an epoch may wait: the choices of all images, drawn before, and the means.
        monkeypatch.setattr(data.Loader, "choices", allowed(data.Loader.choices))
        monkeypatch.setattr(Meter, "means", lambda meter: (0.0, 0.0))
        yield training


def allowed(function):
    """The function, in which the device may be waited for."""

    def call(*arguments):
        NoWaiting.suspended = True
        try:
            return function(*arguments)
        finally:
            NoWaiting.suspended = False

    return call


def an_epoch(training):
    """A pass of training and one of testing, in which nothing may wait."""
    training.step = 0
    with NoWaiting():
        train.train_epoch(training, lambda _: None)
        train.test_epoch(training, lambda _: None)


def test_training_and_testing_stay_on_the_device_and_never_wait(fake):
    for epoch, loader in enumerate([fake.small, fake.large, fake.large]):
        fake.rows = [None] * epoch
        assert fake.loader is loader
        an_epoch(fake)
    tensors = [*fake.network.parameters(), *fake.average.network.buffers(), fake.meter.sums, fake.losses]
    tensors += [state["momentum_buffer"] for state in fake.optimizer.state.values()]
    assert len(tensors) > 20 and {tensor.device.type for tensor in tensors} == {"cuda"}


@pytest.mark.parametrize(
    "wait",
    [torch.Tensor.item, bool, torch.Tensor.cpu, lambda loss: torch.zeros(()).to(loss.device)],
    ids=["item", "bool", "cpu", "copy to the device"],
)
def test_waiting_in_a_step_is_noticed(fake, monkeypatch, wait):
    forward = train.forward

    def waiting(*them):
        logits, losses = forward(*them)
        wait(losses.sum())
        return logits, losses

    monkeypatch.setattr(train, "forward", waiting)
    with pytest.raises(Waited):
        an_epoch(fake)


def test_a_tensor_left_on_the_cpu_is_noticed(fake):
    fake.loader.mean = torch.zeros(3, 1, 1)
    with pytest.raises(RuntimeError, match="device"):
        an_epoch(fake)
