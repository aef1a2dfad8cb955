"""What the first filters of trained networks look like, drawn side by side.

    python -m benchmarks.filters runs/whitened/last.pt runs/learnt/last.pt --out picture.png

Each filter is drawn as the small picture it answers to most, stretched to the full range of colour: grey
where it does not care, red where it wants red and no green and blue.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.utils import make_grid

import model
from harness import checkpoint, folder
from harness.errors import Parser, one_line_errors

COLUMNS = 12


def main(argv: list[str] | None = None) -> int:
    """Draw those of the files named."""
    parser = Parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, default=Path("filters.png"))
    with one_line_errors(model.NetworkError) as outcome:
        arguments = parser.parse_args(argv)
        figure = Figure(figsize=(4.2 * len(arguments.files), 1.8), layout="constrained")
        panels = figure.subplots(1, len(arguments.files), squeeze=False)[0]
        for axes, path in zip(panels, arguments.files, strict=True):
            axes.imshow(tiled(first_filters(path)).permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_title(path.parent.name, fontsize=9)
            axes.axis("off")
        folder.write_picture(arguments.out, figure)
        print(f"drawn to {arguments.out}")
    return outcome.code


def first_filters(path: Path) -> Tensor:
    """The weights of the first convolution, filters×3×H×W. UserError if the file is no trained network."""
    network = model.ready(checkpoint.load(path))
    layer = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    return layer.weight.detach()


def tiled(filters: Tensor) -> Tensor:
    """One picture of all filters (3×H×W, 0 to 1), each from -1 to 1 times its largest weight."""
    scaled = 0.5 + filters / (2 * filters.abs().amax((1, 2, 3), keepdim=True))
    return make_grid(scaled, COLUMNS, padding=1, pad_value=1)


if __name__ == "__main__":
    sys.exit(main())
