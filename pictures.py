"""The pictures in a run folder, drawn from what is recorded there. Each function returns a figure, which `write` makes a PNG file."""

import io
import itertools

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import files

COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]  # Okabe and Ito's, for the colour-blind
TRAIN, TEST = COLOURS[:2]
LINES = ["-", "--", ":", "-."]  # for more runs than colours


def write(path, figure):
    """The figure as a PNG file, whole or not at all."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    files.write_whole(path, buffer.getbuffer())


def curves(folder, source):
    """Loss and accuracy of train and test over epochs from metrics.csv, the falls of the learning rate marked."""
    rows = files.read_metrics(folder / "metrics.csv")
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(f"{rows[-1]['test_accuracy']:.2f}% test accuracy after the last epoch, on {source}", fontsize=11)
    for axes, name, unit in zip(figure.subplots(1, 2), ("loss", "accuracy"), ("", " (%)")):
        falls = [before["epoch"] + 0.5 for before, row in zip(rows, rows[1:]) if row["lr"] < before["lr"]]
        for fall in falls:
            axes.axvline(fall, color="0.8", linewidth=1, label="learning rate falls" if fall == falls[0] else None)
        for part, colour, marker in (("train", TRAIN, "o"), ("test", TEST, "s")):
            axes.plot(epochs, [row[f"{part}_{name}"] for row in rows], color=colour, marker=marker, markersize=3, label=part)
        axes.set(xlabel="epoch", ylabel=name + unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def over_seconds(runs, title=""):
    """Test accuracy over seconds of training, a line a run: `runs` maps labels to rows of metrics.csv."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, (label, rows) in enumerate(runs.items()):
        axes.plot(list(itertools.accumulate(row["seconds"] for row in rows)), [row["test_accuracy"] for row in rows], label=label, marker="o",
                  markersize=3, color=COLOURS[number % len(COLOURS)], linestyle=LINES[number // len(COLOURS) % len(LINES)])
    axes.set(xlabel="seconds of training", ylabel="test accuracy (%)")
    figure.suptitle(title)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def grid(images, captions, columns, title):
    """Pictures (N×3×H×W, uint8) in rows, each under its caption of two lines at most."""
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(1.45 * columns, 1.75 * rows + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, image, caption in zip(panels, images, captions):
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(caption, fontsize=8, linespacing=1.3)
    return figure


def samples(loader, classes, source):
    """The first 32 images of an epoch as the network sees them: cropped, mirrored, mixed."""
    images, labels = (part[:32] for part in next(loader.epoch()))
    images = (images * loader.std + loader.mean).round().clamp(0, 255).to("cpu", torch.uint8)
    if labels.ndim == 1:
        captions = [classes[label][:18] for label in labels.tolist()]
    else:
        captions = ["\n".join(f"{classes[label][:12]} {100 * share:.0f}%" for share, label in zip(*map(torch.Tensor.tolist, pair)) if share > 0)
                    for pair in zip(*labels.topk(2))]
    return grid(images, captions, 8, f"what the network is trained on: {source}")


def mistakes(images, labels, probabilities, classes, source):
    """The 25 wrong answers the network was surest of."""
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True)][:25]
    captions = [f"{classes[predicted[i]][:14]} {100 * confidence[i]:.0f}%\n(is {classes[labels[i]][:14]})" for i in worst]
    return grid(images[worst], captions, 5, f"surest mistakes on {source}")


def confusion(labels, predicted, classes, source):
    """How many images of each class were taken for which: counts, and percent of the true class."""
    n = len(classes)
    counts = (labels * n + predicted).bincount(minlength=n * n).view(n, n)
    percent = 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)
    figure = Figure(figsize=(2.5 + 0.75 * n, 2 + 0.62 * n), layout="constrained")
    axes = figure.subplots()
    # Square root: the few per cent off the diagonal are what one looks for.
    axes.imshow((percent / 100).sqrt().numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row in range(n):
        for column in range(n):
            axes.text(column, row, f"{counts[row, column]}\n{percent[row, column]:.1f}%", ha="center", va="center", fontsize=8,
                      color="white" if percent[row, column] > 45 else "black")
    axes.set_xticks(range(n), [name[:14] for name in classes], rotation=45, ha="right")
    axes.set_yticks(range(n), [name[:14] for name in classes])
    axes.set(xlabel="answer of the network", ylabel="true class")
    axes.set_title(f"{100 * (labels == predicted).double().mean():.2f}% right on {source}", fontsize=11)
    axes.spines[:].set_visible(False)
    return figure
