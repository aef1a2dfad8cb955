"""The pictures of the page, drawn anew.

    python -m study.draw                              # all but filters.png, which needs trained networks
    python -m study.draw --filters WHITENED LEARNT    # only that, from two files such as runs/NAME/last.pt

`dense-unpooled` has no drawing of its own: it looks at what `dilated` does.
"""

import itertools
import signal
import statistics
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for python study/draw.py
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while torch loads ends without a traceback

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

import model
from harness import checkpoint, pictures
from harness.errors import Parser, one_line_errors
from study import table
from study.table import BASE, Study

pictures.import_matplotlib()  # a notebook may ask for a backend that is not here
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"  # Okabe and Ito's, for the colour-blind
GREY = "0.94"
CHANNELS, SIZE = 8, 7  # channels that a kind gets and that are drawn, pixels of a side
FIELDS = ["dense", "dilated", "pointwise", "dense-unpooled"]  # the kinds whose receptive fields are drawn


def main(argv: list[str] | None = None) -> int:
    """Draw them all, or the filters."""
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=table.HERE, metavar="DIR")
    parser.add_argument("--filters", nargs=2, type=Path, metavar=("WHITENED", "LEARNT"))
    with one_line_errors(model.NetworkError) as outcome, pictures.defaults():
        arguments = parser.parse_args(argv)
        if arguments.filters:
            figures = {"filters": first_filters(*arguments.filters)}
        else:
            figures = {"accuracy": accuracy(table.read(table.HERE)), "receptive_fields": fields(FIELDS)}
            figures |= {kind: drawing(steps(kind)) for kind in model.STUDY if kind != "dense-unpooled"}
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            save(figure, arguments.out / f"{name}.png")
        print(f"drawn to {arguments.out}")
    return outcome.code


def save(figure: Figure, path: Path) -> None:
    """Write a picture, small enough for a repository."""
    figure.savefig(path, dpi=90)


def accuracy(study: Study) -> Figure:
    """A line for each kind: test accuracy after equal epochs and in equal seconds, and what it costs."""
    kinds = sorted(table.kinds(study), key=lambda kind: statistics.mean(table.accuracies(study, kind)))
    epochs = f"after {study.about['epochs']} epochs, mean and standard deviation"
    figure = Figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for line, kind in enumerate(kinds):
        scores = table.accuracies(study, kind)
        mean, deviation = statistics.mean(scores), statistics.stdev(scores) if len(scores) > 1 else 0
        if (timed := table.timed_accuracy(study, kind)) is not None:
            pair(left, line, (timed, ORANGE, f"in the seconds of {BASE}"), (mean, BLUE, epochs))
        left.errorbar(mean, line, xerr=deviation, fmt="o", color=BLUE, label=epochs)
        work = model.multiply_adds(model.build(kind)) / model.multiply_adds(model.build(BASE))
        spent, base = table.seconds(study, kind), table.seconds(study, BASE)
        if spent and base:
            pair(right, line, (spent / base, ORANGE, "seconds of training"), (work, GREEN, "multiply-adds"))
    left.set(title=f"test accuracy (%), {study.about['data']}", yticks=range(len(kinds)), yticklabels=kinds)
    right.set(title=f"cost ({BASE} = 1)")
    for axes in (left, right):
        axes.grid(color=GREY)
        axes.spines[["top", "right"]].set_visible(False)
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles))
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.06), "ncols": 2, "frameon": False}
        axes.legend(once.values(), once.keys(), fontsize=9, **place)
    return figure


def pair(axes: Axes, line: int, first: tuple[float, str, str], second: tuple[float, str, str]) -> None:
    """Two points on a line, each given by its place, colour and label, and what lies between."""
    axes.plot([first[0], second[0]], [line, line], color="0.8", zorder=0)
    for (place, colour, label), marker in ((first, "D"), (second, "o")):
        axes.plot(place, line, marker, color=colour, label=label)


def steps(kind: str) -> list[nn.Module]:
    """What a kind does one after the other, from CHANNELS to as many; BatchNorm and SiLU left out."""
    options = model.STUDY[kind].keywords
    layers_of, down = options.get("kind", model.dense), options.get("down", "max")
    changes = {"stride": {"stride": 2}, "dilation": {"dilation": 2}}.get(down, {})
    layers = [
        layer
        for layer in layers_of(CHANNELS, CHANNELS, **changes)
        if isinstance(layer, (nn.Conv2d, model.Gate))
    ]
    if down == "average":
        layers.insert(0, nn.AvgPool2d(2))
    return [model.Residual(*layers)] if options.get("residual") else layers


def drawing(layers: list[nn.Module]) -> Figure:
    """A row for each step: the pixels that one output value reads, channel by channel.

    The output is that of the third channel in the middle. The dashed frame is what the value to its right
    reads.
    """
    figure = Figure(figsize=(8, 0.95 * len(layers) + 0.25), layout="constrained")
    for layer, panels in zip(layers, figure.subplots(len(layers), CHANNELS, squeeze=False)):
        seen, beside = reads(layer), reads(layer, right=1)
        panels[0].set_ylabel(title(layer), rotation=0, ha="right", va="center", fontsize=8)
        for axes in panels:
            axes.set(xticks=[], yticks=[], aspect="equal")
            axes.spines[:].set_visible(False)
        for channel, axes in enumerate(panels[: len(seen)]):
            draw_channel(axes, seen[channel], beside[channel])
    for channel, axes in enumerate(figure.axes[:CHANNELS]):
        axes.set_title(f"channel {channel + 1}", fontsize=8)
    return figure


def reads(layer: nn.Module, right: int = 0) -> Tensor:
    """Which pixels (channels×SIZE×SIZE, bool) the value in the middle, or so many to its right, reads."""
    torch.manual_seed(0)
    channels = layer.in_channels if isinstance(layer, nn.Conv2d) else CHANNELS
    images = torch.randn(1, channels, SIZE, SIZE, requires_grad=True)
    outputs = layer(images)
    middle = (outputs.shape[2] - 1) // 2
    outputs[0, 2, middle, middle + right].backward()
    return images.grad[0] != 0


def title(layer: nn.Module) -> str:
    """What the row of a step is called."""
    if isinstance(layer, nn.AvgPool2d):
        return "average of 2×2"
    if isinstance(layer, model.Residual):
        return f"{title(layer[0])},\ninput added"
    if isinstance(layer, model.Gate):
        return "1×1 times\nsigmoid of 1×1"
    words = ["×".join(map(str, layer.kernel_size))]
    if layer.groups > 1:
        words.append("depthwise" if layer.groups == layer.in_channels else f"{layer.groups} groups")
    if layer.dilation[0] > 1:
        words.append(f"dilation {layer.dilation[0]}")
    if layer.stride[0] > 1:
        words.append(f"stride {layer.stride[0]}")
    if layer.in_channels != CHANNELS:
        words.append(f"of {layer.in_channels}")
    return ",\n".join(words)


def draw_channel(axes: Axes, seen: Tensor, beside: Tensor) -> None:
    """The pixels of a channel (SIZE×SIZE of bool), those seen in blue; a frame around those seen beside."""
    colours = [[BLUE if pixel else GREY for pixel in row] for row in seen.tolist()]
    for row, column in itertools.product(range(SIZE), range(SIZE)):
        axes.add_patch(Rectangle((column, row), 0.9, 0.9, color=colours[row][column], linewidth=0))
    if beside.any():
        (top, left), (bottom, right) = beside.nonzero().amin(0).tolist(), beside.nonzero().amax(0).tolist()
        size = right - left + 1, bottom - top + 1
        axes.add_patch(
            Rectangle((left - 0.05, top - 0.05), *size, fill=False, edgecolor=ORANGE, linestyle="--")
        )
    axes.set(xlim=(-0.1, SIZE + 0.1), ylim=(SIZE + 0.1, -0.1))


def fields(names: list[str]) -> Figure:
    """What one central output of each network sees of the input. NetworkError for a name of none."""
    figure = Figure(figsize=(2.6 * len(names), 3.1), layout="constrained")
    figure.suptitle(
        "the pixels that one output depends on, brighter where it depends on them more", fontsize=10
    )
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        draw_field(axes, name)
    return figure


def draw_field(axes: Axes, name: str) -> None:
    """The gradient, a square of the receptive field that the sizes allow, and a dashed one of an image."""
    seen, field = gradient(name), model.receptive_field(model.build(name))
    axes.imshow(seen.sqrt().numpy(), cmap="magma", extent=(-32, 32, 32, -32))
    middle = (seen.sum(0) * (torch.arange(64) - 31.5)).sum() / seen.sum()
    corner = middle - field / 2
    axes.add_patch(Rectangle((corner, corner), field, field, fill=False, edgecolor="white"))
    axes.add_patch(
        Rectangle((-16, -16), 32, 32, fill=False, edgecolor="white", linestyle="--", linewidth=0.8)
    )
    axes.set(xlim=(-32, 32), ylim=(32, -32))
    axes.set_title(f"{name}: {field} px", fontsize=10)
    axes.axis("off")


def gradient(name: str, initialisations: int = 10, images: int = 32, size: int = 64) -> Tensor:
    """Mean size of the gradient, size×size, largest 1, of the output nearest the centre.

    That of a random mixture of its channels, for noise as images and fresh weights, after Luo et al.,
    "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks" (2016).
    """
    total = torch.zeros(size, size)
    for seed in range(initialisations):
        torch.manual_seed(seed)
        layers = itertools.takewhile(lambda layer: not isinstance(layer, model.POOLING), model.build(name))
        trunk = nn.Sequential(*layers)
        noise = torch.randn(images, 3, size, size, requires_grad=True)
        for layer in trunk.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        with torch.no_grad():
            trunk(noise)
        trunk.eval()  # with the statistics of that pass; those of its own would depend on every pixel
        outputs = trunk(noise)
        middle = outputs.shape[2] // 2
        centre = outputs[:, :, middle, middle]
        (centre * torch.randn_like(centre)).sum().backward()
        total += noise.grad.abs().mean((0, 1))
    return total / total.max()


def first_filters(whitened: Path, learnt: Path) -> Figure:
    """The filters of the first convolution of two trained networks. UserError if a file holds none."""
    figure = Figure(figsize=(8.4, 1.8), layout="constrained")
    for axes, path, name in zip(figure.subplots(1, 2), (whitened, learnt), ("whitened", "learnt")):
        layers = model.ready(checkpoint.load(path)).modules()
        first = next(layer for layer in layers if isinstance(layer, nn.Conv2d))
        axes.imshow(tiled(first.weight.detach()).permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(name, fontsize=9)
        axes.axis("off")
    return figure


def tiled(filters: Tensor) -> Tensor:
    """A picture (3×H×W, 0 to 1) of all filters (N×3×h×w), each from -1 to 1 times its largest weight."""
    scaled = 0.5 + filters / (2 * filters.abs().amax((1, 2, 3), keepdim=True))
    return make_grid(scaled, nrow=12, padding=1, pad_value=1)


if __name__ == "__main__":
    sys.exit(main())
