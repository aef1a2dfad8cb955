"""Images per second of each part of training, side by side in one run, and what their ratios tell.

    python -m benchmarks.throughput                      # every network
    python -m benchmarks.throughput fast s8 batch_size=128

For each network: (a) our batches alone; (b) torchvision's usual pipeline alone (PIL images, RandomCrop,
RandomHorizontalFlip, ToTensor, Normalize, DataLoader with 2 workers, batches of 128); (c) the training
step on one fixed batch; (d) the real training loop; (e) the network's convolutions alone, forward and
backward, each at its own shape: the limit. The images are random; what is measured does not depend on
them. Medians of several rounds, in which the parts take turns, so that a noisy machine hits all alike.
"""

import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
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
from harness import devices
from harness import settings as configuration
from harness.errors import Parser, one_line_errors
from train import AVERAGE_EVERY, Training, each_batch

IMAGES, ROUNDS = 20_000, 3
Work = Callable[[], Iterator[int]]  # yields numbers of images done


def main(argv: list[str] | None = None) -> int:
    """Print the table for the networks named, or for all."""
    parser = Parser(__doc__)
    parser.add_argument("words", nargs="*", metavar="network | name=value")
    with one_line_errors() as outcome:
        words = parser.parse_args(argv).words
        pairs = [word for word in words if "=" in word]
        names = [word for word in words if "=" not in word] or list(model.NETWORKS)
        chosen = [configuration.read([*pairs, f"network={name}", "small_epochs=0"]) for name in names]
        dataset = random_images()
        peer = DataLoader(Pictures(dataset.train), batch_size=128, shuffle=True, num_workers=2)
        threads = torch.get_num_threads()
        print(f"torch {torch.__version__}, {threads} threads; images/s, median of {ROUNDS} rounds")
        titles = ("a batches", "b torchvision", "c step", "d loop", "e conv only", "a/b", "d/c", "d/e")
        print(f"{'network':<18}" + "".join(f"{title:>14}" for title in titles))
        ours = theirs = None
        for settings in map(configuration.resolve, chosen):
            training = Training(settings, dataset, devices.pick(settings.device))
            if ours is None:  # these two are the same for every network
                ours, theirs = medians((partial(batches, training), partial(torchvisions, peer)), 1.5)
            parts = (partial(part, training) for part in (fixed_batch, real_loop, convolutions))
            step, loop, limit = medians(list(parts), 0.8)
            rates = "".join(f"{rate:>14,.0f}" for rate in (ours, theirs, step, loop, limit))
            ratios = f"{ours / theirs:>14.1f}{loop / step:>14.2f}{loop / limit:>14.2f}"
            print(f"{settings.network:<18}{rates}{ratios}", flush=True)
    return outcome.code


def random_images() -> data.Dataset:
    """A data set of noise, the same each time."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = data.Split(images.contiguous(memory_format=torch.channels_last), torch.arange(IMAGES) % 10)
    classes = [str(label) for label in range(10)]
    about = data.About("random images", classes, [0.5] * 3, [0.25] * 3, IMAGES, IMAGES, "test")
    return data.Dataset(about, split, split)


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


def medians(parts: Iterable[Work], seconds: float) -> list[float]:
    """The median rate of each part over rounds in which they take turns."""
    rounds = [[rate(part(), seconds) for part in parts] for _ in range(ROUNDS)]
    return [statistics.median(column) for column in zip(*rounds)]


def rate(work: Iterator[int], seconds: float) -> float:
    """Images per second of `work`, after its first batch."""
    next(work)
    began, images = time.perf_counter(), 0
    for count in work:
        images += count
        if (spent := time.perf_counter() - began) > seconds:
            break
    return images / spent


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that what was asked of it is done when the clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def batches(training: Training) -> Iterator[int]:
    """Our batches alone."""
    for epoch in range(1000):
        for images, _ in training.loader.epoch(epoch):
            synchronise(training.device)
            yield len(images)


def torchvisions(peer: DataLoader) -> Iterator[int]:
    """torchvision's batches alone."""
    while True:
        for images, _ in peer:
            yield len(images)


def fixed_batch(training: Training) -> Iterator[int]:
    """The training step on one batch."""
    images, labels = next(training.loader.epoch())
    while True:
        for _ in each_batch(training.update, [(images, labels)], training.sums):
            training.step = (training.step + 1) % AVERAGE_EVERY
            synchronise(training.device)
            yield len(images)


def real_loop(training: Training) -> Iterator[int]:
    """The training loop as train.py has it, batch for batch."""
    for epoch in range(1000):
        training.begin_epoch()
        for _ in each_batch(training.update, training.loader.epoch(epoch), training.sums):
            training.step += 1
            yield training.loader.images_in(training.step - 1)


def convolutions(training: Training) -> Iterator[int]:
    """Every convolution of the network, forward and backward, on its own inputs kept from one pass."""
    calls = []

    def keep(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        entry = inputs[0].detach().requires_grad_(inputs[0].requires_grad)
        calls.append((layer, entry, torch.ones_like(output)))

    layers = [layer for layer in training.network.modules() if isinstance(layer, nn.Conv2d)]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    images, _ = next(training.loader.epoch())
    with training.autocast:
        training.network(images)
    for hook in hooks:
        hook.remove()
    while True:
        for layer, entry, gradient in calls:
            with training.autocast:
                result = layer(entry)
            if wanted := [tensor for tensor in (layer.weight, entry) if tensor.requires_grad]:
                torch.autograd.grad(result, wanted, gradient)
        synchronise(training.device)
        yield len(images)


if __name__ == "__main__":
    sys.exit(main())
