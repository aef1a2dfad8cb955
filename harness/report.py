"""What a run prints."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import model
from data import Info, kept
from harness import devices
from harness.errors import command, say
from harness.metrics import Meter, Row, best
from harness.settings import Settings

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

    def show(self, done: int, meter: Meter) -> None:
        """So many batches are done. The meter, which is this rank's, is read only when the bar is drawn."""
        if self.update(done - self.n):  # reading waits for the device, so not more than twice a second
            loss, accuracy = meter.so_far()
            self.set_postfix_str(f"loss {loss:.4f}, {accuracy:.2f}%", refresh=False)


def start(settings: Settings, device: torch.device, info: Info, network: nn.Module) -> None:
    """What is about to be trained, on what and where."""
    precision = "bfloat16" if devices.bfloat16(device, settings.precision) else "float32"
    several = f", {devices.world_size()} ranks" if devices.world_size() > 1 else ""
    say(f"device    {devices.describe(device)}, {precision}{several}")
    images = f"{info.train_images:,} training and {info.scored_images:,} {info.scored_on} images"
    say(f"data      {info.source}: {images}, {len(info.classes)} classes")
    if settings.holdout and (settings.weights or settings.teachers):
        known = "else they know images that are held out now"
        say(f"note: weights and teachers must have been trained with this holdout and seed, {known}")
    say(f"network   {settings.network}")
    say(model.summary(network))
    say(model.facts(network))


def resumed(settings: Settings, before: dict[str, Any], epochs: int, lr: float) -> None:
    """Where a run goes on after so many epochs, and what differs from the settings it had `before`."""
    if epochs >= settings.epochs:
        say(f"nothing to do: all {epochs} epochs are done; a larger epochs= makes the run longer")
        return
    say(f"resumed   in epoch {epochs + 1} of {settings.epochs}, at learning rate {lr:.4g}")
    for name, value in dataclasses.asdict(settings).items():
        if name in before and before[name] != value and name not in ("out", "checkpoint_minutes"):
            say(f"changed   {name}: {before[name]} before, {value} from now on")


def epoch(settings: Settings, info: Info, rows: Sequence[Row], test_seconds: float) -> None:
    """The line of the last epoch, with the time left for the run; `test_seconds` are those of its test."""
    number, lr, train_loss, train_accuracy, test_loss, test_accuracy, seconds = rows[-1]
    images = kept(info.train_images, settings.left_out(number - 1), settings.batch_size)
    hardest = f" of the hardest {images / info.train_images:.0%}" if images < info.train_images else ""
    left = seconds_left(settings, [row.seconds for row in rows], test_seconds)
    say(
        f"epoch {number:>3}/{settings.epochs}  lr {lr:<8.4g} "
        f"train loss {train_loss:.4f}  {train_accuracy:6.2f}%{hardest}   "
        f"{info.scored_on} loss {test_loss:.4f}  {test_accuracy:6.2f}%   "
        f"{seconds:.1f} s  {images / seconds:,.0f} images/s  {tqdm.format_interval(left)} left"
    )


def end(path: Path, device: torch.device, info: Info, rows: Sequence[Row]) -> None:
    """What came out of the run in the folder `path`."""
    last, top, memory = rows[-1], best(rows), devices.peak_memory(device)
    say(f"{info.scored_on} accuracy {last.test_accuracy:.2f}% after the last epoch, on {info.source}")
    say(
        f"best          {top.test_accuracy:.2f}% after epoch {top.epoch} "
        f"(chosen on the {info.scored_on} images, so not a result; weights in best.pt)"
    )
    say(f"run folder    {path}{f', peak memory {memory:.2f} GiB' if memory else ''}")
    say(f"evaluate with {command('python', 'train.py', '--evaluate', path)}")


def evaluation(
    path: Path, info: Info, saved: dict[str, Any], labels: Tensor, logits: dict[int, Tensor]
) -> None:
    """Accuracy by class and in total; `logits` (N×classes) by the number of views of an image."""
    right = {views: (each.argmax(1) == labels).double() for views, each in logits.items()}
    trained = ""
    if "training" in saved:  # weights alone do not say how long they were trained
        steps = f" and {saved['step']} steps" if saved["step"] else ""
        trained = f" after {len(saved['rows'])} epochs{steps}"
    print(f"{path}: {saved['network']}{trained}, on {info.source}")
    for label, name in enumerate(info.classes):
        share = 100 * right[1][labels == label].mean()
        print(f"{name:>20} {share:6.2f}% of {(labels == label).sum():,} images")
    for views, each in right.items():
        title = f"{info.scored_on} accuracy" if views == 1 else f"in {views} views"
        print(f"{title:>20} {100 * each.mean():6.2f}% of {len(labels):,} images{VIEWS[views]}")


def seconds_left(settings: Settings, seconds: Sequence[float], test_seconds: float) -> float:
    """Seconds the rest of a run should take, from those of the training in each epoch done and of a test.

    Epochs on small images, or with images left out, are quicker. If there was none on full ones yet, they are
    taken to need the time of a small one in proportion to the pixels.
    """
    share = [1 - settings.left_out(epoch) for epoch in range(settings.epochs)]
    on_small = settings.epochs_on_small

    def of_all_images(first: int, end: int) -> float:
        """Seconds of an epoch with all images, from those between `first` and `end`; 0 if there is none."""
        return sum(seconds[first:end]) / (sum(share[first : min(end, len(seconds))]) or 1)

    small = of_all_images(0, on_small)
    full = of_all_images(on_small, settings.epochs) or small * (32 / settings.small_size) ** 2
    left = range(len(seconds), settings.epochs)
    training = sum(share[epoch] * (small if epoch < on_small else full) for epoch in left)
    return training + len(left) * test_seconds
