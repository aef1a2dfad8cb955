"""Images per second of each part of training, side by side in one run, and what their ratios tell.

    python -m benchmarks.throughput                      # every network
    python -m benchmarks.throughput fast s8 batch_size=128
    python -m benchmarks.throughput accurate weights=results/accurate/weights.pt

For each network: (a) our batches alone; (b) torchvision's usual pipeline alone (PIL images, RandomCrop,
RandomHorizontalFlip, ToTensor, Normalize, DataLoader with 2 workers, batches of 128); (c) the training
loop on one fixed batch; (d) the training loop as it is; (e) the network's convolutions alone, forward and
backward, each at its own shape: the limit. The images are random; what is measured does not depend on
them. Medians of several rounds, in which the parts take turns, so that a noisy machine hits all alike.
"""

import itertools
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for python benchmarks/throughput.py
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while torch loads ends without a traceback

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import data
import model
from harness import checkpoint, devices
from harness import settings as configuration
from harness.errors import Parser, one_line_errors
from train import Training, train_epoch

IMAGES = 20_480  # whole batches of 128 and other powers of two: for a shorter one torch compiles anew
ROUNDS = 3


class Over(Exception):
    """The time for a measurement is over."""


class Clock:
    """Counts images for some seconds; the first batch warms up."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.images, self.began = seconds, 0, None

    def count(self, images: int) -> None:
        """So many images are done. Raises Over when the time is."""
        now = time.perf_counter()
        if self.began is None:
            wait_for_device()
            self.began = time.perf_counter()
            return
        self.images += images
        if now - self.began > self.seconds:
            raise Over


Part = Callable[[Clock], None]  # works and counts until the clock raises Over


def main(argv: list[str] | None = None) -> int:
    """Print the table for the networks named, or for all."""
    parser = Parser(__doc__)
    parser.add_argument("words", nargs="*", metavar="network | name=value")
    with one_line_errors() as outcome:
        words = parser.parse_args(argv).words
        pairs = [word for word in words if "=" in word]
        names = [word for word in words if "=" not in word] or list(model.NETWORKS)
        chosen = [configuration.read([*pairs, f"network={name}", "small_epochs=0"]) for name in names]
        device = devices.pick(chosen[0].device)  # before torch's threads start; the same for all
        dataset = random_images()
        peer = DataLoader(Pictures(dataset.train), batch_size=128, shuffle=True, num_workers=2)
        threads = torch.get_num_threads()
        print(f"torch {torch.__version__}, {threads} threads; images/s, median of {ROUNDS} rounds")
        titles = ("a batches", "b torchvision", "c one batch", "d loop", "e conv only", "a/b", "d/c", "d/e")
        print(f"{'network':<18}" + "".join(f"{title:>14}" for title in titles))
        ours = theirs = None
        for settings in chosen:
            training = Training(settings, dataset, device)
            if settings.weights:
                checkpoint.start_from([training.network], Path(settings.weights), training.info.classes)
            if ours is None:  # these two are the same for every network
                ours, theirs = medians([partial(batches, training), partial(torchvisions, peer)], 1.5)
            parts = [partial(part, training) for part in (one_batch, loop, convolutions)]
            one, whole, limit = medians(parts, 0.8)
            rates = "".join(f"{rate:>14,.0f}" for rate in (ours, theirs, one, whole, limit))
            ratios = f"{ours / theirs:>14.1f}{whole / one:>14.2f}{whole / limit:>14.2f}"
            print(f"{settings.network:<18}{rates}{ratios}", flush=True)
    return outcome.code


def random_images() -> data.Dataset:
    """A data set of noise, the same each time."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = data.Split(images.contiguous(memory_format=torch.channels_last), torch.arange(IMAGES) % 10)
    classes = [str(label) for label in range(10)]
    info = data.Info("random images", classes, [0.5] * 3, [0.25] * 3, IMAGES, IMAGES, "test")
    return data.Dataset(info, split, split)


class Pictures(Dataset):
    """What torchvision's CIFAR10 does for each image: an array to a PIL image, then the transform."""

    def __init__(self, split: data.Split) -> None:
        self.images = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = split.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.25,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def medians(parts: Sequence[Part], seconds: float) -> list[float]:
    """The median rate of each part over rounds in which they take turns."""
    rounds = [[rate(part, seconds) for part in parts] for _ in range(ROUNDS)]
    return [statistics.median(column) for column in zip(*rounds)]


def rate(part: Part, seconds: float) -> float:
    """Images per second of a part."""
    clock = Clock(seconds)
    with suppress(Over):
        part(clock)
    wait_for_device()
    return clock.images / (time.perf_counter() - clock.began)


def wait_for_device() -> None:
    """Let the device finish what it was asked for, before the time is read."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def batches(training: Training, clock: Clock) -> None:
    """Our batches alone."""
    for epoch in itertools.count():
        for batch in training.large.batches(epoch):
            clock.count(len(batch.indices))


def torchvisions(peer: DataLoader, clock: Clock) -> None:
    """torchvision's batches alone."""
    while True:
        for images, _ in peer:
            clock.count(len(images))


def loop(training: Training, clock: Clock) -> None:
    """The training loop as it is."""
    batch_size = training.settings.batch_size
    while True:
        training.step = 0
        train_epoch(training, lambda _: clock.count(batch_size))  # but for the last batch of an epoch


def one_batch(training: Training, clock: Clock) -> None:
    """The training loop on the same batch again and again."""
    loader, batch = training.large, next(training.large.batches())
    training.large.batches = lambda *_: itertools.repeat(batch)
    try:
        loop(training, clock)
    finally:
        del loader.batches


def convolutions(training: Training, clock: Clock) -> None:
    """Every convolution of the network, forward and backward, on its own inputs kept from one pass."""
    calls = []

    def keep(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        entry = inputs[0].detach().requires_grad_(inputs[0].requires_grad)
        calls.append((layer, entry, torch.ones_like(output)))

    layers = [layer for layer in training.network.modules() if isinstance(layer, nn.Conv2d)]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    batch = next(training.large.batches())
    with training.autocast:
        training.network(batch.images)
    for hook in hooks:
        hook.remove()
    while True:
        for layer, entry, gradient in calls:
            with training.autocast:
                result = layer(entry)
            if wanted := [tensor for tensor in (layer.weight, entry) if tensor.requires_grad]:
                torch.autograd.grad(result, wanted, gradient)
        clock.count(len(batch.indices))


if __name__ == "__main__":
    sys.exit(main())
