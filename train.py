"""Train a network of fewer than 200,000 parameters on CIFAR-10 with SGD and StepLR.

It is called so:

    python train.py                          # settings from config.yaml
    python train.py epochs=5 lr=0.05         # override any of them
    python train.py --config my.yaml         # a file that names only what differs
    python train.py --resume runs/NAME       # go on with that run
    python train.py --evaluate runs/NAME     # test accuracy of that run, in total and per class
    torchrun --nproc-per-node 4 train.py     # several devices
"""

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import data
import model
from harness import checkpoint, devices, folder, pictures, report
from harness.errors import UserError, one_line_errors
from harness.metrics import Losses, Row, Sums
from harness.settings import Settings, dump, left_out, parse

# Images (B×3×32×32) and labels (B, of mixed images B×classes) to logits (B×classes) and losses (B).
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
TEST_BATCH = 250  # images; on a CPU 1,000 do not fit the cache, and testing `s8` takes 1.5 times as long
AVERAGE_EVERY = 4  # steps from one move of the average to the next; moving it at each takes 2% more time


def main(argv: list[str] | None = None) -> int:
    """Do what the command line asks. Returns 0 done, 1 cannot write, 2 the user's mistake, 128 + signal."""
    with devices.ranks(), one_line_errors(data.DataError, model.NetworkError) as outcome:
        settings, command = parse(argv, __doc__)
        if command == "evaluate":
            evaluate(settings)
        else:
            run(settings, resume=command == "resume")
    return outcome.code


def run(settings: Settings, resume: bool = False) -> None:
    """Settings -> device -> data -> network -> epochs -> run folder."""
    device = devices.pick(settings.device)
    with folder.held(Path(settings.out), resume, settings.tensorboard) as (out, saved):
        training = Training(settings, load_data(settings), device)
        if saved:
            checkpoint.restore(training, saved)
        elif settings.weights:
            checkpoint.start_from(training, Path(settings.weights))
        report.start(settings, device, training.about, training.network)
        out.write("config.yaml", dump(settings))
        if not saved:
            out.save(training)  # from here on there is something to resume
        out.draw("samples", pictures.samples(*training.loader.seen(32), training.about))
        with devices.StopSignal() as stop:
            while len(training.rows) < settings.epochs:
                for batch, _ in enumerate(training.epoch()):
                    if devices.time_to_agree(batch):
                        out.attend(training, stop)
                report.epoch(settings, training.about, training.rows, training.test_seconds)
                out.save(training)
    report.end(settings, training.about, training.rows)


def load_data(settings: Settings) -> data.Dataset:
    """The data set, which the first rank may have to fetch or decode before the others read it."""
    with devices.first_rank_first():
        return data.load(settings.dataset, settings.data_dir, settings.holdout, settings.seed)


class Training:
    """A network and everything its training changes.

    The plain network is the truth: torch.compile works on it in place, DistributedDataParallel only wraps its
    forward and backward pass, and neither reaches a checkpoint. Random choices follow from seed, epoch, step
    and rank, so none is kept.
    """

    def __init__(self, settings: Settings, dataset: data.Dataset, device: torch.device) -> None:
        self.settings, self.about, self.device = settings, dataset.about, device
        self.autocast = devices.autocast(device, settings.precision)
        self.loader = training_loader(settings, dataset, data.SIZE, device)
        self.small_loader = self.loader
        if settings.small_epochs:
            self.small_loader = training_loader(settings, dataset, settings.small_size, device)
        self.losses = Losses(len(dataset.train.labels), device)
        share, batch_size = devices.share(), TEST_BATCH * devices.world()
        self.test_loader = data.Loader(dataset.test, dataset.about, batch_size, device, **share)
        self.network = fresh_network(settings, self.loader, device)
        self.average = AveragedModel(self.network, multi_avg_fn=self.move_average, use_buffers=True)
        self.forward = devices.parallel(self.network)
        devices.compile(self.network, device, settings.compile)
        of_sgd = {name: getattr(settings, name) for name in ("lr", "momentum", "nesterov", "weight_decay")}
        self.optimizer = SGD(self.network.parameters(), fused=True, **of_sgd)
        self.scheduler = StepLR(self.optimizer, settings.step_size, settings.gamma)
        self.rows: list[Row] = []  # one for each epoch done
        self.test_seconds = 0.0  # of the last test
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Forget the batches of the epoch before, and choose the images of the next."""
        self.step, self.seconds, self.sums = 0, 0.0, self.new_sums("epoch")
        done = len(self.rows)
        self.current = self.small_loader if done < self.settings.small_epochs else self.loader
        self.current.leave_out(left_out(self.settings, done), self.losses.known)

    def new_sums(self, place: str) -> Sums:
        """Sums over no batch yet."""
        return Sums(self.device, f"{place} {len(self.rows) + 1}", self.scheduler.get_last_lr()[0])

    def epoch(self) -> Iterator[None]:
        """Train the rest of the epoch under way, test, and add its row. Yields after every batch."""
        done, lr = len(self.rows), self.scheduler.get_last_lr()[0]
        before, began = self.seconds, time.perf_counter()
        self.forward.train()
        with report.Bar(done + 1, len(self.current), self.step) as bar:
            for _ in each_batch(self.update, self.current.epoch(done, self.step), self.sums):
                self.step += 1
                self.seconds = before + time.perf_counter() - began
                bar.show(self.sums)
                yield
        train = self.sums.means()
        self.seconds = before + time.perf_counter() - began
        test = yield from self.test()
        self.losses.settle(self.current.among)  # a run stopped in the test needs them as they were
        self.rows.append(Row(done + 1, lr, *train, *test, self.seconds))
        for group in self.optimizer.param_groups:
            group["lr"] = lr  # without the warm-up's factor: StepLR multiplies what it finds
        self.scheduler.step()
        self.begin_epoch()

    def update(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A step of SGD; every fourth moves the average of the weights, too."""
        self.begin_step()
        logits, losses = self.score(self.forward, images, labels)
        self.losses.add(self.current.drawn, losses)
        self.optimizer.zero_grad()
        self.mean(losses).backward()
        self.optimizer.step()
        if (len(self.current) - self.step) % AVERAGE_EVERY == 1:  # so the last step of an epoch is one
            self.average.update_parameters(self.network)
        return logits, losses

    @torch.no_grad()
    def answer(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The averaged network's answer, without training it."""
        return self.score(self.average.module, images, labels)

    def score(self, network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The forward pass, in the precision of the run, and the losses."""
        with self.autocast:
            logits = network(images).float()
        smoothing = self.settings.label_smoothing
        return logits, F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")

    def mean(self, losses: Tensor) -> Tensor:
        """The losses' mean over the batches of all ranks, whose gradients are averaged later."""
        return losses.sum() * (devices.world() / self.current.images_in(self.step))

    def test(self) -> Generator[None, None, tuple[float, float]]:
        """Mean loss and accuracy in percent on the test images. Yields after every batch."""
        began, sums = time.perf_counter(), self.new_sums("the test of epoch")
        devices.share_buffers(self.average.module)
        self.average.eval()
        for _ in each_batch(self.answer, self.test_loader.epoch(), sums):
            yield
        means = sums.means()
        self.test_seconds = time.perf_counter() - began
        return means

    def begin_step(self) -> None:
        """Set dropout's choices and the learning rate, which rises over the first `warmup_epochs`."""
        settings, epoch, steps = self.settings, len(self.rows), len(self.current)
        seed = ((settings.seed * 1_000_003 + epoch) * 1_000_003 + self.step) * 1009 + devices.rank()
        devices.seed(self.device, seed & 2**63 - 1)
        warmup = min(1, (epoch * steps + self.step + 1) / max(1, settings.warmup_epochs * steps))
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = lr * warmup

    def move_average(self, averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        """Move by the steps since the last move; the decay rises, lest first weights hold back short runs."""
        steps = len(self.rows) * len(self.loader) + self.step
        decay = min(self.settings.average, (1 + steps) / (10 + steps))
        get_ema_multi_avg_fn(decay ** min(AVERAGE_EVERY, 1 + self.step))(averaged, current, updates)


def each_batch(step: Step, batches: Iterable[tuple[Tensor, Tensor]], sums: Sums) -> Iterator[None]:
    """A pass over batches, for training and testing alike."""
    for images, labels in batches:
        logits, losses = step(images, labels)
        sums.add(logits, labels, losses)
        yield


def training_loader(
    settings: Settings, dataset: data.Dataset, size: int, device: torch.device
) -> data.Loader:
    """Batches of the training images at `size`×`size` pixels, changed as the settings say."""
    split = dataset.train if size == data.SIZE else data.shrink(dataset.train, size)
    how = data.Augmentation(*(getattr(settings, name) for name in data.Augmentation._fields))
    how, batch_size, share = how.scaled(size / data.SIZE), settings.batch_size, devices.share()
    loader = data.Loader(split, dataset.about, batch_size, device, how, settings.seed, **share)
    if (smallest := loader.images_in(len(loader) - 1)) < devices.world():
        few = f"leaves a batch of {smallest} for {devices.world()} devices"
        raise UserError(f"batch_size={batch_size}: {few}; choose another")
    return loader


def fresh_network(settings: Settings, loader: data.Loader, device: torch.device) -> nn.Module:
    """The network before training, its first convolution whitened if asked to."""
    torch.manual_seed(settings.seed)
    network = model.build(settings.network, loader.classes, settings.dropout)
    if settings.whiten:
        model.whiten(network, loader.plain(2000).cpu())
    return devices.place(network, device, settings.sync_batchnorm)


def evaluate(settings: Settings) -> None:
    """Print the test accuracy of a run, in total, by class and over several views, and draw its mistakes."""
    if devices.world() > 1:
        raise UserError("--evaluate needs one device only: start it with python, not torchrun")
    path, device = Path(settings.out), devices.pick(settings.device)
    saved, (about, _, test) = checkpoint.load(path / "last.pt", whole=True), load_data(settings)
    checkpoint.check_same(saved, settings.network, about.classes)
    network = model.ready(saved)[-1].to(device, memory_format=torch.channels_last)
    images = data.Loader(test, about._replace(mean=saved["mean"], std=saved["std"]), TEST_BATCH, device)
    with torch.no_grad(), devices.autocast(device, settings.precision):
        logits = {
            views: torch.cat([model.logits(network, batch, views).cpu() for batch, _ in images.epoch()])
            for views in report.VIEWS
        }
    report.evaluation(settings, about, saved, test.labels, logits)
    folder.write_picture(path / "confusion.png", pictures.confusion(test.labels, logits[1], about))
    folder.write_picture(path / "mistakes.png", pictures.mistakes(test, logits[1], about))
    print(f"pictures in {path}: confusion.png, mistakes.png")


if __name__ == "__main__":
    sys.exit(main())
