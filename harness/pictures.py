"""The pictures in a run folder, drawn from what is recorded there. Each function returns a figure."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from harness.metrics import Row

if TYPE_CHECKING:
    from data import Info, Split

# Okabe and Ito's colours, for the colour-blind.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]
TRAIN, TEST = COLOURS[:2]
LINES = ["-", "--", ":", "-."]  # for more runs than colours


def curves(rows: Sequence[Row], info: "Info") -> Figure:
    """Loss and accuracy of train and test over epochs, the falls of the learning rate marked."""
    epochs = [row.epoch for row in rows]
    falls = [before.epoch + 0.5 for before, row in itertools.pairwise(rows) if row.lr < before.lr]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    accuracy = f"{rows[-1].test_accuracy:.2f}% {info.scored_on} accuracy"
    figure.suptitle(f"{accuracy} after the last epoch, on {info.source}", fontsize=11)
    for axes, name, unit in zip(figure.subplots(1, 2), ("loss", "accuracy"), ("", " (%)")):
        for fall in falls:
            label = "learning rate falls" if fall == falls[0] else None
            axes.axvline(fall, color="0.8", linewidth=1, label=label)
        for part, colour, marker in (("train", TRAIN, "o"), ("test", TEST, "s")):
            values = [getattr(row, f"{part}_{name}") for row in rows]
            label = part if part == "train" else info.scored_on
            axes.plot(epochs, values, color=colour, marker=marker, markersize=3, label=label)
        axes.set(xlabel="epoch", ylabel=name + unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def over_seconds(runs: Mapping[str, Sequence[Row]], title: str = "") -> Figure:
    """Test accuracy over seconds of training, a line a run: `runs` maps labels to rows of metrics.csv."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, (label, rows) in enumerate(runs.items()):
        colour, line = COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]
        spent = list(itertools.accumulate(row.seconds for row in rows))
        accuracy = [row.test_accuracy for row in rows]
        axes.plot(spent, accuracy, label=label, marker="o", markersize=3, color=colour, linestyle=line)
    axes.set(xlabel="seconds of training", ylabel="test accuracy (%)")
    figure.suptitle(title)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def grid(images: Tensor, captions: Sequence[str], columns: int, title: str) -> Figure:
    """Pictures (N×3×H×W, uint8) in rows, each under its caption of two lines at most.

    All in one panel, whose unit is the inch: with a panel each it takes five times as long to draw.
    """
    width, height, side = 1.45, 1.75, 1.3  # of a place and of the picture in it
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(width * columns, height * rows + 0.5))
    figure.suptitle(title, fontsize=11, y=1 - 0.25 / figure.get_figheight(), va="center")
    axes = figure.add_axes((0, 0, 1, height * rows / figure.get_figheight()))
    for number, (image, caption) in enumerate(zip(images, captions)):
        row, column = divmod(number, columns)
        middle, bottom = (column + 0.5) * width, (row + 1) * height - 0.05
        frame = (middle - side / 2, middle + side / 2, bottom, bottom - side)
        axes.imshow(image.permute(1, 2, 0).numpy(), extent=frame, aspect="auto", interpolation="nearest")
        axes.text(middle, frame[3] - 0.05, caption, ha="center", va="bottom", fontsize=8, linespacing=1.3)
    axes.set(xlim=(0, width * columns), ylim=(height * rows, 0))
    axes.axis("off")
    return figure


def samples(images: Tensor, labels: Tensor, info: "Info") -> Figure:
    """Training images (N×3×H×W, uint8) as the network sees them; labels as a Loader gives them."""
    if labels.ndim == 1:
        captions = [info.classes[label][:18] for label in labels.tolist()]
    else:
        captions = ["\n".join(shares(row, info.classes)) for row in labels]
    return grid(images, captions, 8, f"what the network is trained on: {info.source}")


def shares(row: Tensor, classes: Sequence[str]) -> Iterable[str]:
    """The two largest of the shares of classes in a mixed image, in words."""
    for share, label in zip(*map(Tensor.tolist, row.topk(2))):
        if share > 0:
            yield f"{classes[label][:12]} {100 * share:.0f}%"


def mistakes(split: "Split", logits: Tensor, info: "Info") -> Figure:
    """The 25 wrong answers the network was surest of; `logits` are N×classes."""
    confidence, predicted = logits.softmax(1).max(1)
    wrong = (predicted != split.labels).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True)][:25]
    names = [name[:14] for name in info.classes]
    captions = [
        f"{names[predicted[i]]} {100 * confidence[i]:.0f}%\n(is {names[split.labels[i]]})" for i in worst
    ]
    return grid(split.images[worst], captions, 5, f"surest mistakes on {info.source}")


def confusion(labels: Tensor, logits: Tensor, info: "Info") -> Figure:
    """How many images of each class were taken for which: counts, and percent of the true class."""
    n, predicted = len(info.classes), logits.argmax(1)
    counts = (labels * n + predicted).bincount(minlength=n * n).view(n, n)
    percent = 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)
    figure = Figure(figsize=(2.5 + 0.75 * n, 2 + 0.62 * n), layout="constrained")
    axes: Axes = figure.subplots()
    # Square root: the few per cent off the diagonal are what one looks for.
    axes.imshow((percent / 100).sqrt().numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in itertools.product(range(n), range(n)):
        text = f"{counts[row, column]}\n{percent[row, column]:.1f}%"
        colour = "white" if percent[row, column] > 45 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    names = [name[:14] for name in info.classes]
    axes.set_xticks(range(n), names, rotation=45, ha="right")
    axes.set_yticks(range(n), names)
    axes.set(xlabel="answer of the network", ylabel="true class")
    right = (labels == predicted).to(torch.float64).mean()
    axes.set_title(f"{100 * right:.2f}% right on {info.source}", fontsize=11)
    axes.spines[:].set_visible(False)
    return figure


def png(draw, name):
    import io

    buffer = io.BytesIO()
    draw().savefig(buffer, format="png")
    return buffer.getvalue()
