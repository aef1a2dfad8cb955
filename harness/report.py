"""What a run prints."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import model
from data import About, kept
from harness import devices
from harness.metrics import Row, Sums, best
from harness.settings import Settings, left_out

# The levels of test-time augmentation: how many views of an image, and which.
VIEWS = {
    1: "",
    2: ": each as it is and mirrored",
    6: ": these two, also shifted by a pixel up-left and down-right",
}


class Bar(tqdm):
    """A bar over the batches of an epoch, on terminals only, with loss and accuracy so far."""

    def __init__(self, epoch: int, batches: int, done: int) -> None:
        super().__init__(
            desc=f"epoch {epoch}",
            total=batches,
            initial=done,
            unit=" batches",
            leave=False,
            mininterval=0.5,
            disable=devices.rank() > 0 or None,  # None: only on a terminal
        )

    def show(self, sums: Sums) -> None:
        """One batch more. The sums, which are this rank's, are read only when the bar is drawn."""
        if self.update():  # reading waits for the device, so not more than twice a second
            loss, right, images, _ = sums.values.tolist()
            self.set_postfix_str(f"loss {loss / images:.4f}, {100 * right / images:.2f}%", refresh=False)


def start(settings: Settings, device: torch.device, about: About, network: nn.Module) -> None:
    """What is about to be trained, on what and where."""
    precision = "bfloat16" if devices.bfloat16(device, settings.precision) else "float32"
    several = f", {devices.world()} ranks" if devices.world() > 1 else ""
    print(f"device    {devices.describe(device)}, {precision}{several}")
    images = f"{about.train_images:,} training and {about.scored_images:,} {about.scored_on} images"
    print(f"data      {about.source}: {images}, {len(about.classes)} classes")
    print(f"network   {settings.network}")
    model.summary(network)
    print(model.facts(network))


def epoch(settings: Settings, about: About, rows: Sequence[Row], test_seconds: float) -> None:
    """The line of the last epoch, with the time left for the run; `test_seconds` are those of its test."""
    number, lr, train_loss, train_accuracy, test_loss, test_accuracy, seconds = rows[-1]
    images = kept(about.train_images, left_out(settings, number - 1), settings.batch_size)
    hardest = f" of the hardest {images / about.train_images:.0%}" if images < about.train_images else ""
    left = seconds_left(settings, [row.seconds for row in rows], test_seconds)
    print(
        f"epoch {number:>3}/{settings.epochs}  lr {lr:<8.4g} "
        f"train loss {train_loss:.4f}  {train_accuracy:6.2f}%{hardest}   "
        f"{about.scored_on} loss {test_loss:.4f}  {test_accuracy:6.2f}%   "
        f"{seconds:.1f} s  {images / seconds:,.0f} images/s  {duration(left)} left",
        flush=True,
    )


def end(settings: Settings, about: About, rows: Sequence[Row]) -> None:
    """What came out, and how to go on."""
    last, top, out = rows[-1], best(rows), settings.out
    print(f"{about.scored_on} accuracy {last.test_accuracy:.2f}% after the last epoch, on {about.source}")
    print(
        f"best          {top.test_accuracy:.2f}% after epoch {top.epoch} "
        f"(chosen on the {about.scored_on} images, so not a result; weights in best.pt)"
    )
    print(f"run folder    {out}{peak_memory()}")
    print(f"go on with    python train.py --resume {out} epochs={2 * settings.epochs}")
    print(f"look closer   python train.py --evaluate {out}")


def evaluation(
    settings: Settings, about: About, saved: dict[str, Any], labels: Tensor, logits: dict[int, Tensor]
) -> None:
    """Accuracy by class and in total; `logits` (N×classes) by the number of views of an image."""
    right = {views: (each.argmax(1) == labels).double() for views, each in logits.items()}
    steps = f" and {saved['step']} steps" if saved["step"] else ""
    print(f"{settings.out}: {settings.network} after {len(saved['rows'])} epochs{steps}, on {about.source}")
    for label, name in enumerate(about.classes):
        share = 100 * right[1][labels == label].mean()
        print(f"{name:>20} {share:6.2f}% of {(labels == label).sum():,} images")
    for views, each in right.items():
        title = f"{about.scored_on} accuracy" if views == 1 else f"in {views} views"
        print(f"{title:>20} {100 * each.mean():6.2f}% of {len(labels):,} images{VIEWS[views]}")


def seconds_left(settings: Settings, seconds: Sequence[float], test_seconds: float) -> float:
    """Seconds the rest of a run should take, from those of the training in each epoch done and of a test.

    Epochs on small images, or with images left out, are quicker. If there was none on full ones yet, they are
    taken to need the time of a small one in proportion to the pixels.
    """
    share = [1 - left_out(settings, epoch) for epoch in range(settings.epochs)]

    def of_all_images(first: int, end: int) -> float:
        """Seconds of an epoch with all images, from those between `first` and `end`; 0 if there is none."""
        return sum(seconds[first:end]) / (sum(share[first : min(end, len(seconds))]) or 1)

    small = of_all_images(0, settings.small_epochs)
    full = of_all_images(settings.small_epochs, settings.epochs) or small * (32 / settings.small_size) ** 2
    left = range(len(seconds), settings.epochs)
    training = sum(share[epoch] * (small if epoch < settings.small_epochs else full) for epoch in left)
    return training + len(left) * test_seconds


def duration(seconds: float) -> str:
    """Seconds in words: `45 s`, `3 min 20 s`, `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def peak_memory() -> str:
    """The largest memory the process held, as text; nothing where the platform cannot tell."""
    try:
        import resource
    except ImportError:  # Windows
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f", peak memory {peak / 2**30:.2f} GiB"
