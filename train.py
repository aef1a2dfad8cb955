"""Train a network of fewer than 200,000 parameters on CIFAR-10 with SGD and StepLR.

It is called so:

    python train.py                          # settings from config.yaml
    python train.py epochs=5 lr=0.05         # override any of them
    python train.py --config my.yaml         # a file that names only what differs
    python train.py --resume runs/NAME       # go on with that run
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
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while torch loads ends without a traceback

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
    """Do what the command line asks. Returns 0 done, 1 cannot write, 2 the user's mistake, 128 + signal."""
    with devices.ranks(), one_line_errors(data.DataError, model.NetworkError) as outcome:
        command, settings, path = parse(argv, __doc__)
        if command == "evaluate":
            evaluate(settings, path)
        else:
            run(settings, resume=path)
    return outcome.code


def run(settings: Settings, resume: Path | None = None) -> None:
    """Settings -> device -> data -> network -> epochs -> run folder."""
    device = devices.pick(settings.device)
    with run_folder(settings, resume) as folder:
        training = Training(settings, load_data(settings), device)
        if settings.weights and not resume:
            networks = [training.network, training.average.network]
            checkpoint.start_from(networks, Path(settings.weights), training.info.classes)
        folder.begin(training, training.info)  # with --resume goes back to the checkpoint
        report.start(settings, device, training.info, training.network)
        if resume:
            report.resumed(settings, folder.saved["settings"], training.epoch, training.lr)
        folder.draw("samples", lambda: pictures.samples(*training.large.seen(32), training.info))
        while training.epoch < settings.epochs:
            train = train_epoch(training, folder.after_batch)
            test = test_epoch(training, folder.after_batch)
            training.end_epoch(train, test)
            folder.after_epoch(training)  # prints the line; metrics.csv, last.pt, best.pt
        report.end(folder.path, device, training.info, training.rows)


def load_data(settings: Settings) -> Dataset:
    """The data set, which the first rank may have to fetch or decode before the others read it."""
    with devices.first_rank_first():
        return data.load(settings.dataset, settings.data_dir, settings.holdout, settings.seed)


class Training:
    """A network and everything its training changes.

    The plain network is the truth: torch.compile works on it in place, DistributedDataParallel only wraps its
    forward and backward pass, and neither reaches a checkpoint. Random choices follow from seed, epoch, step
    and rank, so none is kept.
    """

    def __init__(self, settings: Settings, dataset: Dataset, device: torch.device) -> None:
        self.settings, self.info, self.device = settings, dataset.info, device
        self.autocast = devices.autocast(device, settings.precision)
        self.large = training_loader(settings, dataset, data.SIZE, device)
        self.small = self.large
        if settings.epochs_on_small:
            self.small = training_loader(settings, dataset, settings.small_size, device)
        batch_size = TEST_BATCH * devices.world()
        self.test_loader = Loader(dataset.test, dataset.info, batch_size, device, **devices.share())
        self.network = fresh_network(settings, self.large, device)
        self.average = MovingAverage(self.network)
        self.parallel = devices.parallel(self.network)  # for the passes whose gradients the ranks share
        if settings.compile:
            devices.compiled(self.network, device)
        self.optimizer = SGD(
            self.network.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.scheduler = StepLR(self.optimizer, settings.fall_every, settings.gamma)
        self.lr, self.lr_since = settings.lr, 0  # the learning rate now; the epoch in which settings.lr held
        self.rows: list[Row] = []  # one for each epoch done
        self.losses = torch.zeros(len(dataset.train.labels), device=device)  # of each image, when last seen
        self.test_seconds = 0.0  # of the last test
        # Of the epoch under way: steps done and all steps, seconds, the images it trains on, their means.
        self.step, self.steps, self.seconds = 0, self.large.steps(), 0.0
        self.images = torch.arange(len(self.losses), device=device)
        self.meter = Meter(device, "epoch 1", self.lr)

    @property
    def epoch(self) -> int:
        """How many epochs are done, and so the number, from 0, of the one under way."""
        return len(self.rows)

    @property
    def loader(self) -> Loader:
        """Batches of the training images, in the first epochs on smaller ones."""
        return self.small if self.epoch < self.settings.epochs_on_small else self.large

    def begin_epoch(self) -> None:
        """Choose the images of the epoch: all, or those that the network knows least."""
        share = self.settings.left_out(self.epoch)
        self.images = data.least_known(self.losses, share, self.settings.batch_size)
        self.losses.index_fill_(0, self.images, 0)  # each rank notes those of its own; all_losses adds up
        self.steps = self.loader.steps(len(self.images))
        self.meter = Meter(self.device, f"epoch {self.epoch + 1}", self.lr)

    def end_epoch(self, train: tuple[float, float], test: tuple[float, float]) -> None:
        """Add the row of the epoch, mean loss and accuracy of both parts; the learning rate falls if due."""
        self.rows.append(Row(self.epoch + 1, self.lr, *train, *test, self.seconds))
        self.losses = self.all_losses()
        self.step, self.seconds = 0, 0.0
        set_lr(self.optimizer, self.lr)  # without the warm-up's factor: StepLR multiplies what it finds
        self.scheduler.step()
        self.lr = self.optimizer.param_groups[0]["lr"]

    def all_losses(self) -> Tensor:
        """The loss of each image (N) when a rank last saw it; 0 for those yet to come in this epoch."""
        losses = self.losses.clone()
        losses[self.images] = devices.total(losses[self.images]).to(self.device)
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, and to use the network. UserError if its loss is no longer finite."""
        return checkpoint.about(self.settings, self.info) | {
            "weights": self.average.network.state_dict(),
            "test_accuracy": self.rows[-1].test_accuracy if self.rows else None,
            "training": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "lr_since": self.lr_since,
            "rows": [list(row) for row in self.rows],
            "step": self.step,
            "seconds": self.seconds,
            "meter": self.meter.total(),
            "images": self.images,
            "losses": self.all_losses(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was called, with the settings of now.

        A changed `lr` is the learning rate from here on; it falls when it would have fallen anyway.
        """
        model.load_weights(self.average.network, state["weights"])
        model.load_weights(self.network, state["training"])
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state["optimizer"]})
        self.rows = [Row(*row) for row in state["rows"]]
        changed = self.settings.lr != state["settings"]["lr"]
        self.lr_since = self.epoch if changed else state["lr_since"]
        self.optimizer.step()  # does nothing without gradients, but StepLR wants to see it first
        for epoch in range(self.epoch + 1):
            if epoch > 0:
                self.scheduler.step()
            if epoch == self.lr_since:
                set_lr(self.optimizer, self.settings.lr)
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.step, self.seconds = state["step"], state["seconds"]
        self.images = state["images"].to(self.device)
        self.steps = self.loader.steps(len(self.images))
        self.losses.copy_(state["losses"])
        if devices.rank() > 0:
            self.losses.index_fill_(0, self.images, 0)  # the first rank holds what all of them noted
        self.meter = Meter(self.device, f"epoch {self.epoch + 1}", self.lr)
        self.meter.restore(state["meter"])


class MovingAverage:
    """A copy of a network whose weights and statistics follow it slowly: what is tested and kept."""

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).eval()
        current, average = ([*each.parameters(), *each.buffers()] for each in (network, self.network))
        pairs = [(mine, its) for mine, its in zip(average, current) if mine.is_floating_point()]
        self.average, self.current = ([tensor.detach() for tensor in tensors] for tensors in zip(*pairs))

    def update(self, decay: float) -> None:
        """Keep this share of the average; the rest comes from the network as it is now."""
        torch._foreach_lerp_(self.average, self.current, 1 - decay)


def train_epoch(training: Training, after_batch: Callable[[Training], None]) -> tuple[float, float]:
    """Train on what is left of the epoch; mean loss and accuracy in percent over all of it."""
    if training.step == 0:
        training.begin_epoch()
    training.network.train()
    before, began = training.seconds, time.perf_counter()
    for batch in training.loader.batches(training.epoch, training.step, training.images):
        seed_dropout(training)
        set_lr(training.optimizer, training.lr * warmup(training))
        logits, losses = forward(training, training.parallel, batch)
        (losses.sum() * devices.world() / batch.images_on_all_ranks).backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
        training.average.update(decay(training))
        training.losses[batch.indices] = losses.detach()
        training.meter.add(logits, batch.labels, losses)
        training.step += 1
        training.seconds = before + time.perf_counter() - began
        after_batch(training)  # the bar; saves when due; after Ctrl-C saves and raises Stopped
    means = training.meter.means()  # waits for the device
    training.seconds = before + time.perf_counter() - began
    return means


@torch.no_grad()
def test_epoch(training: Training, after_batch: Callable[[Training], None]) -> tuple[float, float]:
    """Test the average of the weights; mean loss and accuracy in percent."""
    devices.share_buffers(training.average.network)
    meter = Meter(training.device, f"the test of epoch {training.epoch + 1}", training.lr)
    began = time.perf_counter()
    for batch in training.test_loader.batches():
        logits, losses = forward(training, training.average.network, batch)
        meter.add(logits, batch.labels, losses)
        after_batch(training)
    means = meter.means()
    training.test_seconds = time.perf_counter() - began
    return means


def forward(training: Training, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (B×classes) and losses (B) of a batch, in the precision of the run."""
    with training.autocast:
        logits = network(batch.images).float()
    smoothing = training.settings.label_smoothing
    return logits, F.cross_entropy(logits, batch.labels, label_smoothing=smoothing, reduction="none")


def set_lr(optimizer: SGD, lr: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def warmup(training: Training) -> float:
    """The share of the learning rate at this step; it rises to 1 over the first `warmup_epochs`."""
    done = training.epoch * training.steps + training.step + 1
    return min(1, done / max(1, training.settings.warmup_epochs * training.steps))


def decay(training: Training) -> float:
    """The decay of the moving average at this step; it rises, lest first weights hold back short runs."""
    done = training.epoch * training.large.steps() + training.step
    return min(training.settings.average, (1 + done) / (10 + done))


def seed_dropout(training: Training) -> None:
    """Let dropout's choices follow from seed, epoch, step and rank."""
    seed = (training.settings.seed * 1_000_003 + training.epoch) * 1_000_003 + training.step
    devices.seed(training.device, (seed * 1009 + devices.rank()) & 2**63 - 1)


def training_loader(settings: Settings, dataset: Dataset, size: int, device: torch.device) -> Loader:
    """Batches of the training images at `size`×`size` pixels, changed as the settings say."""
    split = dataset.train if size == data.SIZE else data.shrink(dataset.train, size)
    augmentation = Augmentation(
        flip=settings.flip,
        crop=settings.crop,
        rotate=settings.rotate,
        colour=settings.colour,
        cutout=settings.cutout,
        mixup=settings.mixup,
        cutmix=settings.cutmix,
    ).scaled(size / data.SIZE)
    batch_size, share = settings.batch_size, devices.share()
    last = len(split.labels) % batch_size or batch_size
    if min(last, batch_size) < devices.world():
        few = f"leaves a batch of {last} for {devices.world()} devices"
        raise UserError(f"batch_size={batch_size}: {few}; choose another")
    return Loader(split, dataset.info, batch_size, device, augmentation, settings.seed, **share)


def fresh_network(settings: Settings, loader: Loader, device: torch.device) -> nn.Module:
    """The network before training, its first convolution whitened if asked to."""
    torch.manual_seed(settings.seed)
    network = model.build(settings.network, loader.classes, settings.dropout)
    if settings.epochs_on_small and not model.takes(network, settings.small_size):
        small = f"images of {settings.small_size}×{settings.small_size} pixels, as the first epochs have"
        raise UserError(f"network={settings.network}: cannot take {small}; set small_epochs=0")
    if settings.whiten:
        model.whiten(network, loader.plain(2000).cpu())
    return devices.place(network, device, settings.sync_batchnorm)


if __name__ == "__main__":
    sys.exit(main())
