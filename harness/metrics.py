"""What is measured: loss and accuracy of a pass over batches, and the rows of metrics.csv."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harness import devices
from harness.errors import UserError


class Row(NamedTuple):
    """A row of metrics.csv. Accuracies are in percent, seconds are those of the training."""

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float


def best(rows: Sequence[Row]) -> Row:
    """The first row with the highest test accuracy."""
    return max(rows, key=lambda row: row.test_accuracy)


class Meter:
    """Sums of loss and right answers over batches, kept on the device, so that no step waits for it.

    UserError where the losses are no longer finite: at once in a single process on a CPU, else when the sums
    are asked for. `place` and `lr` tell the user where that was, such as `epoch 3` at learning rate 0.1.
    """

    def __init__(self, device: torch.device, place: str, lr: float) -> None:
        # Losses, right answers, images, and batches before the loss was no longer finite.
        self.sums = torch.zeros(4, device=device)
        self.place, self.lr = place, lr

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Count a batch: logits B×classes, labels B or, of mixed images, B×classes, losses B."""
        classes = labels if labels.ndim == 1 else labels.argmax(1)
        self.sums[0] += losses.sum()
        self.sums[1] += (logits.argmax(1) == classes).sum()
        self.sums[2] += len(labels)
        self.sums[3] += self.sums[0].isfinite()
        if self.sums.device.type == "cpu" and devices.world_size() == 1:
            self.check(self.sums)

    def check(self, sums: Tensor) -> None:
        """UserError if the losses that were added up are no longer finite."""
        if not sums[0].isfinite():
            step = int(sums[3]) // devices.world_size() + 1
            where = f"{self.place}, step {step}, at learning rate {self.lr:.4g}"
            what_to_do = "start again with a lower lr (the last good checkpoint is kept)"
            raise UserError(f"the loss is no longer finite in {where}; {what_to_do}")

    def total(self) -> Tensor:
        """The four sums over all ranks, on the CPU."""
        sums = devices.total(self.sums)
        self.check(sums)  # only now, so that all ranks stop here alike
        return sums

    def restore(self, total: Tensor) -> None:
        """Go on from what `total` gave: the first rank holds it for all."""
        if devices.rank() == 0:
            self.sums.copy_(total)

    def means(self) -> tuple[float, float]:
        """Mean loss and accuracy in percent over all ranks."""
        loss, right, images, _ = self.total().tolist()
        return loss / images, 100 * right / images

    def so_far(self) -> tuple[float, float]:
        """The means of this rank alone. Reading them waits for the device."""
        loss, right, images, _ = self.sums.tolist()
        return loss / images, 100 * right / images
