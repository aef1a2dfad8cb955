"""The designs among which `accurate` is chosen, trained alike and scored on held-out training images.

    python -m benchmarks.candidates dataset=folder data_dir=DIR                 # train one after another
    python -m benchmarks.candidates --only shared,gates dataset=folder data_dir=DIR

Each has 30 epochs and the same settings, so that what differs is the design. Called again, it goes on
where it was stopped. The runs are left in --out, to be looked at with the test images out of sight.
"""

import sys
from functools import partial
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

import model
import train
from harness import folder
from harness.errors import Parser, UserError, one_line_errors
from model import AdaptiveAvgPool2d, Network, Residual, convolution, normalised

SCHEDULE = ["epochs=30", "lr=0.2", "step_size=4", "gamma=0.5", "average=0.995"]
SETTINGS = ["holdout=5000", "small_epochs=0", "leave_out=0", "crop=4", *SCHEDULE]


class Bottleneck(nn.Module):
    """BatchNorm, ReLU, convolution, three times: 1×1, 3×3 in groups, 1×1; added to the input, N×C×H×W.

    After He et al., "Identity Mappings in Deep Residual Networks" (2016). With `uses` above 1 the same
    weights are applied so often, one after the other, each time with BatchNorms of their own.
    """

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int = 1, uses: int = 1) -> None:
        super().__init__()
        inner = outputs // 2
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(inputs, inner, 1, bias=False),
                nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False),
                nn.Conv2d(inner, outputs, 1, bias=False),
            ]
        )
        norms = [[nn.BatchNorm2d(channels) for channels in (inputs, inner, inner)] for _ in range(uses)]
        self.norms = nn.ModuleList(map(nn.ModuleList, norms))
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, images: Tensor) -> Tensor:
        """The sum."""
        for norms in self.norms:
            inside = F.relu(norms[0](images))
            if self.shortcut:
                images = self.shortcut(inside)
            inside = self.convolutions[0](inside)
            for norm, layer in zip(norms[1:], self.convolutions[1:], strict=True):
                inside = layer(F.relu(norm(inside)))
            images = images + inside
        return images


class Gated(nn.Module):
    """Depthwise 3×3, BatchNorm, two 1×1 multiplied with each other, 1×1, BatchNorm; added to the input.

    After Ma et al., "Rewrite the Stars" (2024).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.before, self.after = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.gates = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.last = nn.Conv2d(channels, channels, 1, bias=False)
        nn.init.constant_(self.after.weight, 0.2)

    def forward(self, images: Tensor) -> Tensor:
        """The sum, N×C×H×W."""
        gate, value = self.gates(self.before(self.depthwise(images))).chunk(2, 1)
        return images + self.after(self.last(F.relu(gate) * value))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """What brings the input of a block to the shape of its output: average pooling and a 1×1, or nothing."""
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(inputs, outputs, 1, bias=False))


def stem() -> nn.Conv2d:
    """The first convolution, which `whiten` sets: 32 channels at 32 pixels."""
    return nn.Conv2d(3, 32, 3, padding=1, bias=False)


def head(channels: int, classes: int) -> list[nn.Module]:
    """From the last block to logits."""
    last = nn.Conv2d(channels, classes, 1, bias=False)
    return [nn.BatchNorm2d(channels), nn.ReLU(), AdaptiveAvgPool2d(), last]


def bottlenecks(
    classes: int, dropout: float, blocks: list[int], widths: list[int], groups: list[int], uses: list[int]
) -> Network:
    """Bottlenecks at 32, 16 and 8 pixels; a block that changes the shape is used once."""
    layers: list[nn.Module] = [stem()]
    inputs = 32
    for stage, (count, width, split, often) in enumerate(zip(blocks, widths, groups, uses, strict=True)):
        for number in range(count):
            stride = 2 if stage and number == 0 else 1
            layers.append(Bottleneck(inputs, width, split, stride, often if inputs == width else 1))
            inputs = width
    return Network(*layers, *head(inputs, classes))


def gated(classes: int, dropout: float) -> Network:
    """Three, four and four gated blocks."""
    layers = [stem(), nn.BatchNorm2d(32)]
    for inputs, width, count in [(32, 32, 3), (32, 64, 4), (64, 88, 4)]:
        if inputs != width:
            layers += [nn.Conv2d(inputs, width, 2, 2, bias=False), nn.BatchNorm2d(width)]
        layers += [Gated(width) for _ in range(count)]
    last = [nn.BatchNorm2d(88), AdaptiveAvgPool2d(), nn.Conv2d(88, classes, 1, bias=False)]
    return Network(*layers, *last)


def plain(classes: int, dropout: float) -> Network:
    """Plain 3×3 convolutions, residual pairs of them at 16 and 8 pixels.

    The best of eight designs in five minutes each. A pair starts as the identity, its last BatchNorm scaling
    by 0, after Goyal et al., "Accurate, Large Minibatch SGD" (2017).
    """

    def unit(inputs: int, outputs: int, *pooling: nn.Module) -> list[nn.Module]:
        first, *rest = normalised(convolution(inputs, outputs))
        return [first, *pooling, *rest]

    def pair(channels: int) -> Residual:
        first, last = unit(channels, channels), unit(channels, channels)
        nn.init.zeros_(last[1].weight)
        return Residual(*first, *last)

    at_32 = [stem(), nn.SiLU(), *unit(32, 32), *unit(32, 32, nn.MaxPool2d(2))]
    at_16 = [pair(32), pair(32), *unit(32, 48, nn.MaxPool2d(2))]
    at_8 = [pair(48), pair(48), pair(48), nn.AdaptiveMaxPool2d(1)]
    return Network(*at_32, *at_16, *at_8, nn.Conv2d(48, classes, 1, bias=False))


PYRAMID = {"blocks": [2, 4, 4], "widths": [32, 64, 160], "groups": [1, 4, 5]}
TALL = {"widths": [32, 64, 128], "uses": [1, 1, 1]}
CANDIDATES = {
    "shared": partial(bottlenecks, **PYRAMID, uses=[2, 2, 2]),
    "shared-3": partial(bottlenecks, **PYRAMID, uses=[2, 3, 3]),
    "deep": partial(bottlenecks, blocks=[3, 7, 6], groups=[1, 4, 8], **TALL),
    "separables": partial(model.accurate, blocks=(3, 4, 4)),
    "separables-16": partial(model.accurate, blocks=(2, 8, 3)),
    "gates": gated,
    "plain": plain,
}


def main(argv: list[str] | None = None) -> int:
    """Train the designs, then print the table of them."""
    parser = Parser(__doc__)
    parser.add_argument("settings", nargs="*", metavar="name=value")
    parser.add_argument("--only", default=",".join(CANDIDATES), metavar="NAMES")
    parser.add_argument("--out", type=Path, default=Path("runs/candidates"))
    with one_line_errors() as outcome:
        arguments = parser.parse_intermixed_args(argv)
        model.NETWORKS.update(CANDIDATES)
        names = arguments.only.split(",")
        if unknown := [name for name in names if name not in CANDIDATES]:
            raise UserError(f"--only {unknown[0]}: choose from {', '.join(CANDIDATES)}")
        for name in names:
            run = arguments.out / name
            new = [*SETTINGS, *arguments.settings, f"network={name}", f"out={run}"]
            if code := train.main(["--resume", str(run)] if run.exists() else new):
                return code
        print(table(arguments.out))
    return outcome.code


def table(root: Path) -> str:
    """What the runs below `root` gave, the best first."""
    heads = ["design", "parameters", "multiply-adds", "convolutions", "epochs"]
    heads += ["held-out accuracy", "held-out loss", "training loss", "quickest epoch"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    runs = {name: root / name / "metrics.csv" for name in CANDIDATES if (root / name).exists()}
    rows = {name: folder.read_metrics(path) for name, path in runs.items()}
    for name in sorted(rows, key=lambda name: -rows[name][-1].test_accuracy):
        network, row = model.build(name), rows[name][-1]
        quickest = min(row.seconds for row in rows[name])  # the one that was disturbed least
        layers = sum(isinstance(layer, nn.Conv2d) for layer in network.modules())
        sizes = f"{model.count_parameters(network):,} | {model.multiply_adds(network) / 1e6:.1f} million"
        scores = f"{row.test_accuracy:.2f}% | {row.test_loss:.4f} | {row.train_loss:.4f}"
        lines.append(f"| `{name}` | {sizes} | {layers} | {row.epoch} | {scores} | {quickest:.0f} s |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
