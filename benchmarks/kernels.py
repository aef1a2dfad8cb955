"""What one output value of each kind of convolution looks at, drawn for docs/convolutions.md.

    python -m benchmarks.kernels                     # every kind, to docs/convolutions/KIND.png

A row is a step of the kind, from eight channels to eight. A pixel is blue where the gradient of one output
value, that of the third channel in the middle, with respect to it is not zero. The dashed frame is what
the value to the right of it looks at: with stride 2 it is two pixels away.
"""

import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

import model
from harness import folder, pictures
from harness.errors import Parser, one_line_errors

OUT = Path(__file__).resolve().parent.parent / "docs" / "convolutions"
CHANNELS, DRAWN, SIZE = 8, 8, 9  # channels a kind gets, channels and pixels that are drawn


def main(argv: list[str] | None = None) -> int:
    """Draw all."""
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    with one_line_errors() as outcome:
        out = parser.parse_args(argv).out
        out.mkdir(parents=True, exist_ok=True)
        for name in model.STUDY:
            folder.write_picture(out / f"{name}.png", drawing(steps(name)))
        print(f"drawn to {out}")
    return outcome.code


def steps(name: str) -> list[nn.Module]:
    """What a kind does one after the other, BatchNorm and SiLU left out."""
    options = model.STUDY[name].keywords
    kind, down = options.get("kind", model.dense), options.get("down", "max")
    changes = {"stride": {"stride": 2}, "dilation": {"dilation": 2}}.get(down, {})
    layers = [
        layer for layer in kind(CHANNELS, CHANNELS, **changes) if isinstance(layer, (nn.Conv2d, model.Gate))
    ]
    if down == "average":
        layers.insert(0, nn.AvgPool2d(2))
    return [model.Residual(*layers)] if options.get("residual") else layers


def reads(layer: nn.Module, right: int = 0) -> Tensor:
    """Which pixels a value near the middle depends on, so many to the right: channels×SIZE×SIZE of bool."""
    torch.manual_seed(0)
    channels = layer.in_channels if isinstance(layer, nn.Conv2d) else CHANNELS
    images = torch.randn(1, channels, SIZE, SIZE, requires_grad=True)
    outputs = layer(images)
    middle = outputs.shape[2] // 2
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


def drawing(layers: list[nn.Module]) -> Figure:
    """The steps below each other, the channels of each side by side."""
    figure = Figure(figsize=(8, 0.95 * len(layers) + 0.25), layout="constrained")
    for layer, panels in zip(layers, figure.subplots(len(layers), DRAWN, squeeze=False), strict=True):
        seen, beside = reads(layer), reads(layer, right=1)
        for channel, axes in enumerate(panels):
            axes.set(xlim=(-0.1, SIZE), ylim=(SIZE, -0.1), aspect="equal", xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if channel < len(seen):
                draw(axes, seen[channel], beside[channel])
        panels[0].set_ylabel(title(layer), rotation=0, ha="right", va="center", fontsize=8)
    for channel, axes in enumerate(figure.axes[:DRAWN]):
        axes.set_title(f"channel {channel + 1}", fontsize=8)
    return figure


def draw(axes: Axes, seen: Tensor, beside: Tensor) -> None:
    """The pixels of one channel, those seen in blue, and a frame around those seen beside."""
    for row, column in torch.cartesian_prod(torch.arange(SIZE), torch.arange(SIZE)).tolist():
        colour = pictures.COLOURS[0] if seen[row, column] else "0.95"
        axes.add_patch(Rectangle((column, row), 0.9, 0.9, color=colour, linewidth=0))
    if beside.any():
        (top, left), (bottom, right) = beside.nonzero().amin(0).tolist(), beside.nonzero().amax(0).tolist()
        frame = {"fill": False, "edgecolor": pictures.COLOURS[1], "linestyle": "--", "linewidth": 0.9}
        axes.add_patch(Rectangle((left - 0.05, top - 0.05), right - left + 1, bottom - top + 1, **frame))


if __name__ == "__main__":
    sys.exit(main())
