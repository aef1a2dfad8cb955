"""What one output of a network sees: the gradient of one central output with respect to the input, drawn.

    python -m benchmarks.receptive_fields                     # every network, to receptive_fields.png
    python -m benchmarks.receptive_fields s8 s8-strided --out picture.png

The output is one position before the global pooling. The gradient is that of a random mixture of its
channels, for noise as images and fresh weights, and its size is averaged over images, channels and
initialisations, after Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional
Neural Networks" (2016). The square is the receptive field that the layers' sizes allow.
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

import model
from harness import folder
from harness.errors import Parser, one_line_errors

TITLE = (
    "which pixels one central output depends on (square root of the gradient's size; "
    "the image is 32 pixels wide, dashed)"
)


def main(argv: list[str] | None = None) -> int:
    """Draw the networks named, or all."""
    parser = Parser(__doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(model.NETWORKS)}")
    parser.add_argument("--out", type=Path, default=Path("receptive_fields.png"))
    with one_line_errors(model.NetworkError) as outcome:
        arguments = parser.parse_args(argv)
        folder.write_picture(arguments.out, drawing(arguments.networks or list(model.NETWORKS)))
        print(f"drawn to {arguments.out}")
    return outcome.code


def drawing(names: Sequence[str]) -> Figure:
    """Networks side by side. NetworkError for a name of none."""
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.9 * columns, 3.2 * rows + 0.4), layout="constrained")
    figure.suptitle(TITLE, fontsize=10)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, name in zip(panels, names):
        draw(axes, name)
    return figure


def draw(axes: Axes, name: str) -> None:
    """What a network sees, and squares of the size of its receptive field and of an image."""
    seen, field = gradient(name), model.receptive_field(model.build(name))
    axes.imshow(seen.sqrt().numpy(), cmap="magma", extent=(-32, 32, 32, -32))
    middle = (seen.sum(0) * (torch.arange(64) - 31.5)).sum() / seen.sum()
    corner = middle - field / 2
    axes.add_patch(Rectangle((corner, corner), field, field, fill=False, edgecolor="white"))
    image = Rectangle((-16, -16), 32, 32, fill=False, edgecolor="white", linestyle="--", linewidth=0.8)
    axes.add_patch(image)
    axes.set(xlim=(-32, 32), ylim=(32, -32))
    axes.set_title(f"{name}: {field} px", fontsize=10)


def gradient(name: str, initialisations: int = 10, images: int = 32, size: int = 64) -> Tensor:
    """Mean size of the gradient, size×size, largest 1, of the output nearest the centre."""
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


if __name__ == "__main__":
    sys.exit(main())
