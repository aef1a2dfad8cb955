"""The pictures in a run folder, drawn from what is recorded there."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import files

TRAIN, TEST = "#0072b2", "#d55e00"  # Okabe and Ito's blue and vermilion, told apart by the colour-blind


def curves(folder, source):
    """Draw curves.png from metrics.csv: loss and accuracy of train and test over epochs, the falls of the learning rate marked."""
    rows = files.read_metrics(folder / "metrics.csv")
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(f"{folder.name}: {rows[-1]['test_accuracy']:.2f}% test accuracy after the last epoch, on {source}", fontsize=11)
    for axes, name, unit in zip(figure.subplots(1, 2), ("loss", "accuracy"), ("", " (%)")):
        for before, row in zip(rows, rows[1:]):
            if row["lr"] < before["lr"]:
                axes.axvline(before["epoch"] + 0.5, color="0.8", linewidth=1, label="learning rate falls" if before["lr"] == rows[0]["lr"] else None)
        for part, colour, marker in (("train", TRAIN, "o"), ("test", TEST, "s")):
            axes.plot(epochs, [row[f"{part}_{name}"] for row in rows], color=colour, marker=marker, markersize=3, label=part)
        axes.set(xlabel="epoch", ylabel=name + unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    write(folder / "curves.png", figure)


def write(path, figure):
    """The figure as a PNG file, whole or not at all."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    files.write_whole(path, buffer.getbuffer())
