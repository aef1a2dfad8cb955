"""Train a network of fewer than 200,000 parameters on CIFAR-10 with SGD and StepLR.

    python train.py                          # settings from config.yaml
    python train.py epochs=5 lr=0.05         # override any of them
    python train.py --config my.yaml         # a file that names only what differs
    python train.py --resume runs/NAME       # go on with that run
    python train.py --evaluate runs/NAME     # test accuracy of that run, in total and per class
    torchrun --nproc-per-node 4 train.py     # several devices
"""

import argparse
import contextlib
import dataclasses
import datetime
import gc
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import data
import files
import model
import pictures
import settings as configuration
from data import DataError
from files import RunError
from settings import SettingsError

FIXED = ("network", "dataset", "batch_size", "average", "seed", "out")  # what makes a run that run and no other
STEPS = 5  # how often the learning rate falls in a run whose step_size is left empty
TEST_ACCURACY = files.COLUMNS.index("test_accuracy")
SAVE = 1  # a number no stop signal has: save and go on


class Stopped(Exception):
    """A signal ended the training; the argument is its number."""


class StopSignal:
    """Within the block, remembers the first Ctrl-C or SIGTERM in `number`; a second one ends the process at once.

    Not so under torchrun, which passes on what its workers have already received from the terminal.
    """

    def __init__(self):
        self.number = 0

    def __enter__(self):
        self.before = {number: signal.signal(number, self.receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def receive(self, number, frame):
        if self.number and not dist.is_initialized():
            os._exit(128 + number)
        self.number = number


class Trainer:
    """A network with everything its training changes, and the epochs that change it.

    The plain network is the truth: torch.compile works on it in place, DistributedDataParallel only wraps its forward and
    backward pass, and neither reaches a checkpoint. Random choices follow from (seed, epoch, step, rank), so none is kept.
    """

    def __init__(self, settings, dataset, device, folder=None):
        self.settings, self.device, self.folder = settings, device, folder
        # The loaders hold the training images padded; a second copy would be a tenth of the memory.
        self.dataset = dataclasses.replace(dataset, train=dataset.train._replace(images=dataset.train.images.new_empty(0)))
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.bfloat16 = settings.precision == "bfloat16" or settings.precision == "auto" and has_bfloat16(device)
        torch.manual_seed(settings.seed)
        try:
            self.network = model.build(settings.network, len(dataset.classes), settings.dropout)
        except ValueError as error:
            raise SettingsError(str(error)) from None
        if settings.whiten:
            sample = data.Split(*(part[:: max(1, len(part) // 2000)] for part in dataset.train))
            images, _ = next(data.Loader(sample, dataset.mean, dataset.std, len(sample.labels)).epoch())
            model.whiten(self.network, images)
        self.network.to(device, memory_format=torch.channels_last)
        if settings.sync_batchnorm and device.type == "cuda" and self.world > 1:
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self.average = AveragedModel(self.network, multi_avg_fn=self.move_average, use_buffers=True)
        self.tested = self.average.module if settings.average else self.network
        self.forward = nn.parallel.DistributedDataParallel(self.network) if self.world > 1 else self.network
        if settings.compile == "on" or settings.compile == "auto" and device.type == "cuda":
            self.network.compile(mode="reduce-overhead" if device.type == "cuda" else None)

        shared = dict(mean=dataset.mean, std=dataset.std, device=device, rank=self.rank, world=self.world)

        def training_loader(split):
            scale = split.images.shape[-1] / data.SIZE
            return data.Loader(split, batch_size=settings.batch_size, shuffle=True, flip=settings.flip, crop=round(settings.crop * scale),
                               rotate=settings.rotate, colour=settings.colour, cutout=round(settings.cutout * scale),
                               mixup=settings.mixup, cutmix=settings.cutmix, seed=settings.seed, **shared)

        self.small_loader = training_loader(data.shrink(dataset.train, settings.small_size)) if settings.small_epochs else None
        self.train_loader = training_loader(dataset.train)
        self.test_loader = data.Loader(dataset.test, batch_size=1000 * self.world, **shared)
        smallest = len(dataset.train.labels) % settings.batch_size or settings.batch_size
        if smallest < self.world:
            raise SettingsError(f"batch_size={settings.batch_size}: leaves a batch of {smallest} for {self.world} devices; choose another")

        self.optimizer = torch.optim.SGD(self.network.parameters(), settings.lr, settings.momentum,
                                         weight_decay=settings.weight_decay, nesterov=settings.nesterov)
        self.scheduler = StepLR(self.optimizer, settings.step_size, settings.gamma)
        self.stop, self.tensorboard = StopSignal(), None
        self.step, self.seconds, self.rows = 0, 0.0, []
        self.totals = torch.zeros(4, device=device)
        self.saved_at = self.drawn_at = time.monotonic()

    def train(self):
        """Train up to the number of epochs set, keeping the run folder up to date. Raises Stopped, or RunError if the loss diverges."""
        with self.stop:
            try:
                while len(self.rows) < self.settings.epochs:
                    self.train_epoch()
                    if time.monotonic() - self.drawn_at > 60:
                        self.draw()
            finally:
                self.draw()

    def draw(self):
        """Draw curves.png from metrics.csv."""
        self.drawn_at = time.monotonic()
        if self.rank == 0 and self.rows:
            self.picture("curves", pictures.curves(self.folder, self.dataset.source))

    def picture(self, name, figure):
        """Put a figure into the run folder, and into TensorBoard where that is on."""
        pictures.write(self.folder / f"{name}.png", figure)
        if self.tensorboard:
            self.tensorboard.add_figure(name, figure, len(self.rows))

    def train_epoch(self):
        """The rest of the epoch under way, its test, its line, its row and its checkpoint."""
        epoch, lr = len(self.rows), self.scheduler.get_last_lr()[0]
        bar = tqdm(total=len(self.train_loader), initial=self.step, desc=f"epoch {epoch + 1}", unit=" batches", leave=False,
                   disable=self.rank > 0 or None)  # None: only on a terminal
        before, began = self.seconds, time.perf_counter()
        loader = self.small_loader if epoch < self.settings.small_epochs else self.train_loader
        if epoch >= self.settings.epochs - self.settings.plain_epochs:
            # The last steps go by images like those of the test. After He et al., "Data Augmentation Revisited" (2019).
            loader.cutout = loader.mixup = loader.cutmix = 0
        with bar:
            for _ in self.batches(self.forward, loader.epoch(epoch, self.step), self.totals, self.update):
                self.step += 1
                self.seconds = before + time.perf_counter() - began
                bar.update()
                self.attend()
        train_loss, train_accuracy = self.summarise(self.totals)
        self.seconds = before + time.perf_counter() - began
        test_loss, test_accuracy = self.test()
        for group in self.optimizer.param_groups:
            group["lr"] = lr  # without the warm-up's factor: StepLR multiplies what it finds
        self.scheduler.step()
        self.rows.append([epoch + 1, lr, train_loss, train_accuracy, test_loss, test_accuracy, self.seconds])
        print(f"epoch {epoch + 1:>3}/{self.settings.epochs}  lr {lr:<8.4g} train loss {train_loss:.4f}  {train_accuracy:6.2f}%   "
              f"test loss {test_loss:.4f}  {test_accuracy:6.2f}%   {self.seconds:.1f} s  "
              f"{len(self.dataset.train.labels) / self.seconds:,.0f} images/s", flush=True)
        self.step, self.seconds = 0, 0.0
        self.totals.zero_()
        self.save()
        if self.tensorboard:
            for name, value in zip(files.COLUMNS[1:], self.rows[-1][1:]):
                self.tensorboard.add_scalar(name, value, epoch + 1)

    def batches(self, network, loader, totals, update=None):
        """One pass, for training (with `update`) and testing alike: yields (logits, labels) a batch after adding to `totals`.

        `totals` holds the sums of losses, right answers and images, and the number of batches before the loss was no longer finite.
        They stay on the device: nothing here waits for it.
        """
        network.train(update is not None)
        for images, labels in loader:
            if update:  # dropout's choices, like the loader's, follow from the settings and the place alone
                torch.manual_seed(((self.settings.seed * 1_000_003 + len(self.rows)) * 1_000_003 + self.step) * 1009 + self.rank & 2**63 - 1)
            with torch.set_grad_enabled(update is not None), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                logits = network(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.settings.label_smoothing, reduction="sum")
            if update:
                update(loss)
            with torch.no_grad():
                totals[0] += loss
                totals[1] += (logits.argmax(1) == (labels if labels.ndim == 1 else labels.argmax(1))).sum()
                totals[2] += len(labels)
                totals[3] += totals[0].isfinite()
            yield logits, labels

    def update(self, loss):
        """One step of SGD on the mean of the losses over the batches of all ranks; `loss` is the sum over this rank's."""
        settings, steps, epoch = self.settings, len(self.train_loader), len(self.rows)
        warmup = min(1, (epoch * steps + self.step + 1) / max(1, settings.warmup_epochs * steps))
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_last_lr()):
            group["lr"] = lr * warmup
        images = min(settings.batch_size, len(self.dataset.train.labels) - self.step * settings.batch_size)
        self.optimizer.zero_grad()
        (loss * (self.world / images)).backward()  # DistributedDataParallel takes the mean of the ranks' gradients
        self.optimizer.step()
        if settings.average:
            self.average.update_parameters(self.network)

    def move_average(self, averaged, current, updates):
        """One step of the moving average; its decay rises to `average`, so that a short run is not held back by its first weights."""
        steps = len(self.rows) * len(self.train_loader) + self.step
        get_ema_multi_avg_fn(min(self.settings.average, (1 + steps) / (10 + steps)))(averaged, current, updates)

    def test(self):
        """Mean loss and accuracy in percent of the network as it is on the whole test set."""
        if self.world > 1:
            for buffer in self.tested.buffers():
                dist.broadcast(buffer, 0)  # the ranks' BatchNorm statistics have drifted apart since the last forward pass
        totals = torch.zeros_like(self.totals)
        for _ in self.batches(self.tested, self.test_loader.epoch(), totals):
            self.attend()
        return self.summarise(totals)

    def summarise(self, totals):
        """Mean loss and accuracy in percent over all ranks. RunError if the loss is not finite."""
        self.check(totals)
        loss, right, images, _ = self.over_ranks(totals).tolist()
        return loss / images, 100 * right / images

    def over_ranks(self, totals):
        """`totals` summed over all ranks, on the CPU."""
        totals = totals.to("cpu", copy=True)
        if self.world > 1:
            dist.all_reduce(totals)
        return totals

    def check(self, totals):
        """RunError if the losses summed in `totals` are not finite; the last checkpoint is from before that."""
        if not totals[0].isfinite():
            step = int(totals[3]) + 1 if totals is self.totals else self.step
            raise RunError(f"the loss is no longer finite in epoch {len(self.rows) + 1}, step {step}, at learning rate "
                           f"{self.optimizer.param_groups[0]['lr']:.4g}; start again with a lower lr (the last good checkpoint is kept)")

    def attend(self):
        """Between two batches: stop if a signal asked for it, save if checkpoint_minutes are over. All ranks do the same."""
        if self.device.type == "cpu":
            self.check(self.totals)  # elsewhere looking would mean waiting for the device
        due = time.monotonic() - self.saved_at > 60 * self.settings.checkpoint_minutes
        wanted = agree(self.stop.number or SAVE * due)
        if wanted:
            self.save()
        if wanted > SAVE:
            raise Stopped(wanted)

    def save(self):
        """Write last.pt, metrics.csv and, after the best epoch so far, best.pt."""
        self.check(self.totals)
        self.saved_at, totals = time.monotonic(), self.over_ranks(self.totals)
        if self.rank or self.folder is None:
            return
        weights = {"format": files.FORMAT, "torch": str(torch.__version__), "network": self.settings.network, "weights": self.tested.state_dict(),
                   "classes": self.dataset.classes, "mean": self.dataset.mean, "std": self.dataset.std, "source": self.dataset.source,
                   "test_accuracy": self.rows[-1][TEST_ACCURACY] if self.rows else None}
        if self.step == 0 and self.rows and best(self.rows) is self.rows[-1]:
            files.save(self.folder / "best.pt", weights)
        files.save(self.folder / "last.pt", weights | {
            "settings": dataclasses.asdict(self.settings), "training": self.network.state_dict(), "averaged": int(self.average.n_averaged),
            "optimizer": self.optimizer.state_dict()["state"],
            "rows": self.rows, "step": self.step, "seconds": self.seconds, "totals": totals})
        files.write_metrics(self.folder / "metrics.csv", self.rows)

    def restore(self, saved):
        """Go back to where `save` was called. Learning rates and the like come from the settings, so that new ones take effect."""
        if (saved["network"], saved["classes"]) != (self.settings.network, self.dataset.classes):
            raise RunError(f"last.pt holds {saved['network']} for {len(saved['classes'])} classes, the settings ask for "
                           f"{self.settings.network} for {len(self.dataset.classes)}; give the data it was trained on")
        try:
            self.tested.load_state_dict(saved["weights"])
            self.network.load_state_dict(saved["training"])
        except RuntimeError:
            raise RunError(f"last.pt holds {saved['network']} with other layers than it has now; use the version of model.py it was trained with") from None
        self.average.n_averaged.fill_(saved["averaged"])
        self.rows, self.step, self.seconds = saved["rows"], saved["step"], saved["seconds"]
        self.optimizer.step()  # does nothing without gradients, but StepLR wants to see it first
        for _ in self.rows:
            self.scheduler.step()
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": saved["optimizer"]})
        if self.rank == 0:  # the sums of all ranks
            self.totals.copy_(saved["totals"])


def best(rows):
    """The first row with the highest test accuracy."""
    return max(rows, key=lambda row: row[TEST_ACCURACY])


def rank():
    """This process's number among those that train together."""
    return dist.get_rank() if dist.is_initialized() else 0


def agree(number):
    """The largest of the ranks' numbers. Travels over the CPU, so that no device is waited for."""
    if dist.is_initialized():
        number = torch.tensor(number)
        dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def leave():
    """Leave the other ranks. A thread of gloo's that is still there when the interpreter ends can abort the process."""
    gc.collect()  # DistributedDataParallel, part of a cycle with its trainer, holds on to the group and its threads
    dist.destroy_process_group()


@contextlib.contextmanager
def first_rank_first():
    """The block runs on rank 0 before it does on the others, which wait as long as it takes."""
    if rank() > 0:
        agree(0)
    yield
    if rank() == 0:
        agree(0)


def pick_device(name):
    """The torch device `name`, or for `auto` the first of cuda, mps and cpu that is there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(name for name in there if there[name])
    if not there[name]:
        raise SettingsError(f"device={name}: torch finds none on this machine; use device=auto or device=cpu")
    if name == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)


def has_bfloat16(device):
    """Whether the device multiplies bfloat16 in hardware; where it does not, float32 is faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def resolve(settings):
    """The settings with what is left empty filled in."""
    step_size = settings.step_size or max(1, round(settings.epochs / STEPS))
    small_epochs = settings.epochs // 2 if settings.small_epochs is None else settings.small_epochs
    out = settings.out or f"runs/{settings.network}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    return dataclasses.replace(settings, step_size=step_size, small_epochs=small_epochs, out=out)


def open_tensorboard(folder, epochs):
    """A writer of TensorBoard's files in the run folder, which forgets what an earlier part of the run wrote after `epochs`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise SettingsError("tensorboard=true needs a package that is not here: pip install tensorboard") from None
    return SummaryWriter(folder / "tensorboard", purge_step=epochs + 1)


def report(trainer):
    """Print what is about to be trained, on what and where."""
    dataset, device = trainer.dataset, trainer.device
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else f"{device} ({torch.get_num_threads()} threads)"
    print(f"device    {name}, {'bfloat16' if trainer.bfloat16 else 'float32'}" + (f", {trainer.world} ranks" if trainer.world > 1 else ""))
    print(f"data      {dataset.source}: {len(dataset.train.labels):,} training and {len(dataset.test.labels):,} test images, "
          f"{len(dataset.classes)} classes")
    print(f"network   {trainer.settings.network}")
    model.summary(trainer.network)
    print(model.facts(trainer.network))


def run(settings, resume):
    """Train as the settings say in the run folder `settings.out`; with `resume`, go on from its last checkpoint."""
    folder, device = Path(settings.out), pick_device(settings.device)
    with contextlib.ExitStack() as stack:
        if rank() == 0:
            stack.enter_context(files.locked(folder))
        saved = files.load(folder / "last.pt") if resume else None
        if not resume and any((folder / name).exists() for name in ("config.yaml", "last.pt", "metrics.csv")):
            raise RunError(f"{folder}: already holds a run; choose another out=, or go on with it: python train.py --resume {folder}")
        with first_rank_first():
            dataset = data.load(settings.dataset, settings.data_dir)
        trainer = Trainer(settings, dataset, device, folder)
        dataset = trainer.dataset
        if saved:
            trainer.restore(saved)
        if trainer.rank == 0 and settings.tensorboard:
            trainer.tensorboard = stack.enter_context(open_tensorboard(folder, len(trainer.rows)))
        report(trainer)
        if trainer.rank == 0:
            files.write_whole(folder / "config.yaml", configuration.dump(settings).encode())
        if not resume:
            trainer.save()  # from here on there is something to resume
        if trainer.rank == 0:
            trainer.picture("samples", pictures.samples(trainer.train_loader, dataset.classes, dataset.source))
        trainer.train()
    last, top = trainer.rows[-1], best(trainer.rows)
    print(f"test accuracy {last[TEST_ACCURACY]:.2f}% after the last epoch, on {dataset.source}")
    print(f"best          {top[TEST_ACCURACY]:.2f}% after epoch {top[0]} (chosen on the test images, so not a result; its weights are in best.pt)")
    print(f"run folder    {folder}{peak_memory()}")
    print(f"go on with    python train.py --resume {folder} epochs={2 * settings.epochs}")
    print(f"look closer   python train.py --evaluate {folder}")


def evaluate(settings):
    """Print the test accuracy of the run in `settings.out`, in total and per class, and draw where it is wrong."""
    if dist.is_initialized():
        raise SettingsError("--evaluate needs one device only: start it with python, not torchrun")
    folder = Path(settings.out)
    saved = files.load(folder / "last.pt")
    dataset = data.load(settings.dataset, settings.data_dir)
    trainer = Trainer(dataclasses.replace(settings, compile="off"), dataset, pick_device(settings.device))
    trainer.restore(saved)
    results = trainer.batches(trainer.tested, trainer.test_loader.epoch(), torch.zeros_like(trainer.totals))
    logits, labels = (torch.cat(parts).cpu() for parts in zip(*results))
    predicted = logits.argmax(1)
    right = (predicted == labels).double()
    state = f"{len(trainer.rows)} epochs" + (f" and {trainer.step} steps" if trainer.step else "")
    print(f"{folder}: {settings.network} after {state}, on {dataset.source}")
    for label, name in enumerate(dataset.classes):
        print(f"{name:>20} {100 * right[labels == label].mean():6.2f}% of {(labels == label).sum():,} images")
    print(f"{'test accuracy':>20} {100 * right.mean():6.2f}% of {len(labels):,} images")
    pictures.write(folder / "confusion.png", pictures.confusion(labels, predicted, dataset.classes, dataset.source))
    pictures.write(folder / "mistakes.png", pictures.mistakes(dataset.test.images, labels, logits.float().softmax(1), dataset.classes, dataset.source))
    print(f"pictures in {folder}: confusion.png, mistakes.png")


def peak_memory():
    """The largest memory the process held, as text; nothing where the platform cannot tell."""
    try:
        import resource
    except ImportError:  # Windows
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f", peak memory {peak / 2**30:.2f} GiB"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others here."""

    def error(self, message):
        raise SettingsError(f"{message}; python train.py --help shows how to call it")


def parse(argv):
    """Settings and command (`run`, `resume` or `evaluate`) from the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="name=value", help="override a setting of config.yaml")
    parser.add_argument("--config", metavar="FILE", help="a YAML file naming the settings that differ from config.yaml")
    parser.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    parser.add_argument("--evaluate", metavar="RUN", help="print the test accuracy of the run in this folder")
    arguments = parser.parse_intermixed_args(argv)
    given = {name: getattr(arguments, name) for name in ("config", "resume", "evaluate") if getattr(arguments, name) is not None}
    if len(given) > 1:
        raise SettingsError(f"--{' and --'.join(given)} do not go together; give one of them")
    folder = given.get("resume", given.get("evaluate"))
    if folder is None:
        return resolve(configuration.read(arguments.settings, given.get("config"))), "run"
    if not Path(folder).is_dir():
        raise RunError(f"{folder}: there is no such run folder")
    kept = Path(folder, "config.yaml")
    before, settings = configuration.read(config=kept), configuration.read(arguments.settings, kept)
    for name in FIXED:
        if getattr(settings, name) != getattr(before, name):
            raise SettingsError(f"{name}={getattr(settings, name)}: a run keeps its {name} ({getattr(before, name)}); start a new run for another")
    return dataclasses.replace(resolve(settings), out=folder), *(given.keys() & {"resume", "evaluate"})


def main(argv=None):
    """Do what the command line asks; returns the exit code: 0 done, 1 cannot write, 2 the user's mistake, 128 + signal stopped."""
    with contextlib.ExitStack() as stack:
        folder = None
        try:
            if "TORCHELASTIC_RUN_ID" in os.environ:  # started by torchrun
                backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
                dist.init_process_group(backend, timeout=datetime.timedelta(days=7))  # the first rank may have to fetch the data
                stack.callback(leave)
                if dist.get_rank() > 0:
                    stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            settings, command = parse(argv)
            folder = settings.out
            if command == "evaluate":
                evaluate(settings)
            else:
                run(settings, command == "resume")
            return 0
        except (SettingsError, DataError, RunError) as error:
            message, code = f"error: {error}", 2
        except OSError as error:
            message, code = f"error: {error.filename or folder}: {error.strerror or error}; what was saved before is intact", 1
        except Stopped as stopped:
            message, code = f"stopped and saved; go on with: python train.py --resume {folder}", 128 + stopped.args[0]
        except KeyboardInterrupt:
            message, code = "stopped before the first step; there was nothing to save", 130
        except RuntimeError as error:
            if not dist.is_initialized() or "onnection" not in str(error):
                raise
            message, code = "another rank is gone; its own error tells why", 1
            time.sleep(5)
        if rank() > 0:
            time.sleep(5)  # if the first rank has failed too, torchrun ends this one before it says the same again
        print(message, file=sys.stderr)
        return code


if __name__ == "__main__":
    sys.exit(main())
