"""Train a network of fewer than 200,000 parameters on CIFAR-10 with SGD and StepLR.

Usage:

    python train.py                          # settings from config.yaml
    python train.py epochs=5 lr=0.05         # override any of them
    python train.py --config my.yaml         # a file that names only what differs
    python train.py --resume runs/NAME       # continue that run
    python train.py --evaluate runs/NAME     # test accuracy of that run, in total and per class
    torchrun --nproc-per-node 4 train.py     # several devices
"""

import copy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback for Ctrl-C while torch loads; main undoes it

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

import data
import model
from data import Augmentation, Batch, Dataset, Loader
from harness import checkpoint, devices, pictures, report
from harness.errors import UserError, one_line_errors
from harness.evaluation import TEST_BATCH, evaluate
from harness.folder import run_folder
from harness.metrics import Meter, Row
from harness.settings import Settings, parse


def main(argv: list[str] | None = None) -> int:
    """Do what the command line asks. Returns the exit code.

    It is 0 when done, 1 if a file cannot be written, 2 for a user error, 128 + signal if stopped.
    """
    # These two exceptions are, like UserError, the user's mistakes: one line, exit code 2.
    with devices.process_group(), one_line_errors(data.DataError, model.NetworkError) as outcome:
        devices.flush_denormals()  # tiny numbers slow CPUs; before parse, where torch may start its threads
        command, settings, path = parse(argv, __doc__)
        if command == "evaluate":
            evaluate(settings, path)
        else:
            run(settings, resume=path)
    return outcome.code  # an error in the block ends there, reported in one line


def run(settings: Settings, resume: Path | None = None) -> None:
    """Settings -> device -> run folder -> data -> network -> epochs."""
    device = devices.pick(settings.device)
    with run_folder(settings, resume) as folder:
        training = Training(settings, load_data(settings), device)
        if settings.weights and not resume:
            networks = [training.network, training.average.network]
            checkpoint.start_from(networks, Path(settings.weights), training.info.classes)
        folder.begin(training)  # with --resume calls training.load_state_dict(last.pt)
        report.start(settings, device, training.info, training.network)
        if resume:
            report.resumed(settings, folder.saved["settings"], training.epoch, training.lr)
        images, labels = training.large.seen(32)
        folder.draw("samples", lambda: pictures.samples(images, labels, training.info))
        while training.epoch < settings.epochs:
            train = train_epoch(training, folder.after_batch)
            test = test_epoch(training, folder.after_batch)
            training.end_epoch(train, test)
            folder.after_epoch(training)  # prints the line; saves metrics.csv, last.pt, best.pt
        report.end(folder.path, device, training.info, training.rows)


def load_data(settings: Settings) -> Dataset:
    """The data set. The first rank downloads and decodes what is not there yet, then the others read it."""
    with devices.first_rank_first():
        return data.load(settings.dataset, settings.data_dir, settings.holdout, settings.seed)


class Training:
    """What is trained, by what, on what, and how far it has come.

    `network` is what a checkpoint keeps: torch.compile works on it in place, and DistributedDataParallel only
    wraps its forward and backward pass. Every random choice follows from seed, epoch, step and rank, so no
    state of a random generator is kept.
    """

    def __init__(self, settings: Settings, dataset: Dataset, device: torch.device) -> None:
        self.settings, self.info, self.device = settings, dataset.info, device
        self.autocast = devices.autocast(device, settings.precision)
        self.large = training_loader(settings, dataset, data.SIZE, device)
        self.small = self.large  # for the first epochs: smaller images take less time
        if settings.epochs_on_small:  # small_epochs of config.yaml, where that is empty half of all
            self.small = training_loader(settings, dataset, settings.small_size, device)
        batch_size = TEST_BATCH * devices.world_size()  # of all ranks together
        self.test_loader = Loader(dataset.test, dataset.info, batch_size, device, **devices.shard())
        self.network = fresh_network(settings, self.large, device)
        self.average = MovingAverage(self.network)
        self.teachers = checkpoint.teachers(settings.teacher_files, dataset.info.classes, self.small.size)
        for teacher in self.teachers:
            devices.place(teacher, device)  # in place, as .to() of a module
        self.ddp = devices.ddp(self.network)  # the network itself, unless several processes train it
        if settings.compile:
            devices.compile_in_place(self.network, device)
        self.optimizer = SGD(
            self.network.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        # fall_every is step_size of config.yaml, where that is empty a fifth of the epochs.
        self.scheduler = StepLR(self.optimizer, settings.fall_every, settings.gamma)
        # Of the epoch under way; StepLR lowers it in end_epoch. A step of the warm-up has less: see set_lr.
        self.lr = settings.lr
        self.lr_since = 0  # the epoch that StepLR counts from: 0, or that in which --resume changed lr
        self.rows: list[Row] = []  # one for each epoch done
        # The loss of each training image when it was last seen. Those of the epoch under way are spread over
        # the ranks: each has what it saw itself and 0 for the rest, so that all_losses can add them up.
        self.losses = torch.zeros(len(dataset.train.labels), device=device)
        self.test_seconds = 0.0  # what the last test took
        # Of the epoch under way:
        self.step = 0  # steps done
        self.seconds = 0.0
        self.indices = torch.arange(len(self.losses), device=device)  # of the images it trains on
        self.meter = Meter(device, "epoch 1", self.lr)

    @property
    def epoch(self) -> int:
        """How many epochs are done, which is the number of the one under way, counted from 0."""
        return len(self.rows)

    @property
    def loader(self) -> Loader:
        """Batches of the epoch under way: in the first epochs their images are smaller."""
        return self.small if self.epoch < self.settings.epochs_on_small else self.large

    @property
    def steps(self) -> int:
        """How many steps the epoch under way has."""
        return self.loader.steps(len(self.indices))

    def begin_epoch(self) -> None:
        """Choose the images of the epoch: all, or, to save time, those that the network knows least."""
        self.losses = self.all_losses()
        left_out = self.settings.left_out(self.epoch)
        self.indices = data.least_known(self.losses, left_out, self.settings.batch_size)
        self.losses.index_fill_(0, self.indices, 0)  # each rank fills in what it sees; all_losses adds up
        self.meter = Meter(self.device, f"epoch {self.epoch + 1}", self.lr)

    def end_epoch(self, train: tuple[float, float], test: tuple[float, float]) -> None:
        """Add a row of the epoch's means, loss and accuracy in percent; lower the learning rate if due."""
        self.rows.append(Row(self.epoch + 1, self.lr, *train, *test, self.seconds))  # one epoch more
        self.step, self.seconds = 0, 0.0
        set_lr(self.optimizer, self.lr)  # StepLR multiplies what it finds, which may be a warm-up's
        self.scheduler.step()
        self.lr = self.optimizer.param_groups[0]["lr"]

    def all_losses(self) -> Tensor:
        """The losses of all images (N), those of this epoch added up over the ranks; 0 if still to come."""
        losses = self.losses.clone()
        if devices.world_size() > 1:
            losses[self.indices] = devices.total(losses[self.indices]).to(self.device)
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, and to use the network. All ranks call it, for some of it is added up.

        Raises UserError if the loss is no longer finite.
        """
        return checkpoint.about(self.settings, self.info) | {
            "weights": self.average.network.state_dict(),  # which are tested and used
            "test_accuracy": self.rows[-1].test_accuracy if self.rows else None,  # of the last whole epoch
            "training": self.network.state_dict(),  # which SGD changes
            "optimizer": self.optimizer.state_dict()["state"],  # momentum; settings give the rest
            "lr_since": self.lr_since,
            "rows": [list(row) for row in self.rows],
            "step": self.step,
            "seconds": self.seconds,
            "meter": self.meter.total(),
            "images": self.indices,
            "losses": self.all_losses(),
            "teachers": checkpoint.digests(self.teachers),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was called, with the settings as they are now.

        A changed `lr` is the learning rate from here on; it still falls when it would have fallen anyway.
        """
        checkpoint.check_teachers(state, self.teachers)
        model.load_weights(self.average.network, state["weights"])
        model.load_weights(self.network, state["training"])
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state["optimizer"]})
        self.rows = [Row(*row) for row in state["rows"]]
        changed = self.settings.lr != state["settings"]["lr"]
        self.lr_since = self.epoch if changed else state["lr_since"]

        # StepLR counts again from lr_since up to this epoch. So lr is what it would be if the settings, of
        # which gamma and step_size may have changed too, had been these all along.
        set_lr(self.optimizer, self.settings.lr)
        self.optimizer.step()  # changes nothing without gradients; StepLR warns unless one came first
        self.scheduler.last_epoch = self.lr_since
        for _ in range(self.lr_since, self.epoch):
            self.scheduler.step()
        self.lr = self.optimizer.param_groups[0]["lr"]

        self.step, self.seconds = state["step"], state["seconds"]
        self.indices = state["images"].to(self.device)
        self.losses.copy_(state["losses"])
        if devices.rank() > 0:
            self.losses.index_fill_(0, self.indices, 0)  # the first rank holds what all of them saw
        self.meter = Meter(self.device, f"epoch {self.epoch + 1}", self.lr)
        self.meter.restore(state["meter"])  # on the first rank, as with the losses


class MovingAverage:
    """A copy of a network that is tested and kept: the exponential moving average of its weights (EMA).

    BatchNorm's statistics are averaged in the same way.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).eval()
        self.averaged: list[Tensor] = []
        self.current: list[Tensor] = []  # the network's own memory, and so always current
        for averaged, current in zip(tensors(self.network), tensors(network)):
            if averaged.is_floating_point():  # not BatchNorm's count of batches
                self.averaged.append(averaged)
                self.current.append(current)

    def update(self, decay: float) -> None:
        """average = decay × average + (1 - decay) × current, in place for all tensors at once."""
        torch._foreach_lerp_(self.averaged, self.current, 1 - decay)


def tensors(network: nn.Module) -> list[Tensor]:
    """Its weights and BatchNorm statistics."""
    return [each.detach() for each in (*network.parameters(), *network.buffers())]


def train_epoch(training: Training, after_batch: Callable[[Training], None]) -> tuple[float, float]:
    """Train on what is left of the epoch. Returns mean loss and accuracy in percent over all of it."""
    if training.step == 0:  # else a resumed run is in the middle of it, or in its test
        training.begin_epoch()
    training.network.train()
    began = time.perf_counter() - training.seconds  # of earlier, if the run was resumed in this epoch
    for batch in training.loader.batches(training.epoch, training.step, training.indices):
        if training.teachers:
            batch = ask_teachers(training, batch)
        seed_dropout(training)
        set_lr(training.optimizer, training.lr * warmup_factor(training))
        logits, losses = forward(training, training.ddp, batch)
        # On one rank this is losses.mean(). DDP divides gradients by the number of ranks, whose batches may
        # differ in size.
        loss = losses.sum() * devices.world_size() / batch.images_on_all_ranks
        loss.backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
        training.average.update(average_decay(training))
        training.losses[batch.indices] = losses.detach()
        training.meter.add(logits, batch.labels, losses)
        training.step += 1
        training.seconds = time.perf_counter() - began
        after_batch(training)  # the bar; saves when due; after Ctrl-C saves and raises Stopped
    means = training.meter.means()  # waits until the device is done, so that the seconds are right
    training.seconds = time.perf_counter() - began
    return means


@torch.no_grad()
def test_epoch(training: Training, after_batch: Callable[[Training], None]) -> tuple[float, float]:
    """Test the average of the weights. Returns mean loss and accuracy in percent."""
    devices.broadcast_buffers(training.average.network)  # each rank has BatchNorm statistics of its own
    meter = Meter(training.device, f"the test of epoch {training.epoch + 1}", training.lr)
    began = time.perf_counter()
    for batch in training.test_loader.batches():
        logits, losses = forward(training, training.average.network, batch)
        meter.add(logits, batch.labels, losses)
        after_batch(training)  # after Ctrl-C saves, too; the resumed run begins this test anew
    means = meter.means()
    training.test_seconds = time.perf_counter() - began
    return means


def forward(training: Training, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (B×classes) and losses (B) of a batch, in the precision of the run.

    Labels are B, or B×classes where images are mixed or teachers asked. Label smoothing is part of the loss,
    in training and in test. bfloat16 needs no scaling of the loss.
    """
    with training.autocast:
        logits = network(batch.images).float()
    smoothing = training.settings.label_smoothing
    # "none": not reduced to their mean, for the loss of each image is remembered.
    losses = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing, reduction="none")
    return logits, losses


@torch.no_grad()
def ask_teachers(training: Training, batch: Batch) -> Batch:
    """The batch, each label the mean of what it was and the teachers' answer for the changed image.

    Their answer is the mean of their softmax. This is knowledge distillation without a temperature, after
    Hinton et al., "Distilling the Knowledge in a Neural Network" (2015).
    """
    # From 0 to 1, for each teacher normalises by the means of the images that it was trained on.
    images, classes = training.loader.pixels(batch.images), len(training.info.classes)
    with training.autocast:
        answers = [teacher(images).float().softmax(1) for teacher in training.teachers]
    labels = batch.labels if batch.labels.ndim == 2 else F.one_hot(batch.labels, classes).float()
    return batch._replace(labels=labels.lerp(torch.stack(answers).mean(0), 0.5))


def set_lr(optimizer: SGD, lr: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def warmup_factor(training: Training) -> float:
    """A factor on the learning rate of this step, which rises to 1 over the first `warmup_epochs`."""
    step = training.epoch * training.steps + training.step + 1  # of the run, from 1
    steps = training.settings.warmup_epochs * training.steps
    return min(1, step / max(1, steps))  # without a warm-up 1 from the first step on


def average_decay(training: Training) -> float:
    """The decay of the moving average at this step: 0.1 at first, so that the fresh weights soon fade."""
    # As if no image were ever left out. When the first are, the 10 hardly counts any more.
    step = training.epoch * training.large.steps() + training.step
    return min(training.settings.average, (1 + step) / (10 + step))


def seed_dropout(training: Training) -> None:
    """Seed dropout from seed, epoch, step and rank, so that a resumed run draws the same."""
    # Large factors, so that no two steps of a run share a seed. Of 63 bits, for torch takes 64 at most.
    seed = (training.settings.seed * 1_000_003 + training.epoch) * 1_000_003 + training.step
    devices.seed(training.device, (seed * 1009 + devices.rank()) % 2**63)


def training_loader(settings: Settings, dataset: Dataset, size: int, device: torch.device) -> Loader:
    """Batches of the training images at `size`×`size` pixels, augmented as the settings say."""
    split = dataset.train if size == data.SIZE else data.shrink(dataset.train, size)
    augmentation = Augmentation(
        flip=settings.flip,
        crop=settings.crop,
        autoaugment=settings.autoaugment,
        cutout=settings.cutout,
        cutmix=settings.cutmix,
    ).scaled(size / data.SIZE)
    batch_size, shard = settings.batch_size, devices.shard()
    last = len(split.labels) % batch_size  # images in the last batch
    if last == 0:
        last = batch_size
    if last < devices.world_size():
        few = f"leaves a batch of {last} for {devices.world_size()} devices"
        raise UserError(f"batch_size={batch_size}: {few}; choose another")
    return Loader(split, dataset.info, batch_size, device, augmentation, settings.seed, **shard)


def fresh_network(settings: Settings, loader: Loader, device: torch.device) -> nn.Module:
    """The network before training, its first convolution whitened if the settings say so."""
    torch.manual_seed(settings.seed)
    network = model.build(settings.network, loader.num_classes, settings.dropout)
    if reason := model.refusal(network, data.SIZE, loader.num_classes):
        raise UserError(f"network={settings.network}: fails on images of {data.SIZE} pixels ({reason})")
    if settings.epochs_on_small and model.refusal(network, settings.small_size, loader.num_classes):
        small = f"images of {settings.small_size} pixels, as the first epochs have"
        raise UserError(f"network={settings.network}: cannot take {small}; set small_epochs=0")
    if settings.whiten:
        model.whiten(network, loader.plain(2000).cpu())  # some training images, not augmented
    return devices.place(network, device)


if __name__ == "__main__":
    sys.exit(main())
