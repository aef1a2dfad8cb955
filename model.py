"""The networks, each of fewer than 200,000 parameters: images N×3×32×32 in, logits N×classes out.

python model.py          # table of all networks: parameters, multiply-adds, receptive field
python model.py NAME     # the layer-by-layer summary of one
"""

import contextlib
import copy
import io
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while torch loads ends without a traceback

import torch
import torch.nn.functional as F
import torchsummary
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

LIMIT = 200_000
POOLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)  # to 1×1 pixel: what follows sees the whole image


class NetworkError(ValueError):
    """A network that cannot be had; the message is one line that says why."""


class Network(nn.Sequential):
    """Layers in order, the last of which gives N×classes×1×1; `forward` flattens it to N×classes."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N×classes) of images (N×3×32×32, normalised)."""
        return super().forward(images).flatten(1)


class Residual(nn.Sequential):
    """Layers in order, whose input (N×C×H×W) is added to their output; both have the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def convolution(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    """One without bias, whose padding keeps the size where its stride is 1."""
    padding = dilation * (kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)


class PreActivation(nn.Module):
    """BatchNorm, ReLU, separable convolution, twice; added to the input, N×C×H×W.

    After He et al., "Identity Mappings in Deep Residual Networks" (2016). Where the shape changes, average
    pooling and a 1×1 convolution bring the input, once normalised, to that of the output.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)])
        self.first = nn.Sequential(*separable(inputs, outputs, stride))
        self.second = nn.Sequential(*separable(outputs, outputs))
        self.shortcut = None
        if (inputs, stride) != (outputs, 1):
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride), convolution(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        # What no gradient needs is overwritten: the same bits, 1.13 times as fast on a CPU.
        inside = F.relu_(self.norms[0](x))
        shortcut = x if self.shortcut is None else self.shortcut(inside)
        return self.second(F.relu_(self.norms[1](self.first(inside)))).add_(shortcut)


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """torch's pooling to one position, N×C×H×W to N×C×1×1, whose gradient stays channels_last.

    That of torch's own does not, so that the BatchNorm before it has to copy: `s8` then trains at 0.77 times
    the speed on a CPU.
    """

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, x.shape[2:])


class Depthwise(nn.Conv2d):
    """A 3×3 convolution of each channel by itself, N×C×H×W to N×C×H/stride×W/stride.

    A stride leaves out outputs that were computed: the values are the same. In bfloat16 on a CPU the backward
    pass takes eight times as long where the convolution itself is strided.
    """

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__(channels, channels, 3, stride, padding=1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        down, across = self.stride
        return F.conv2d(x, self.weight, padding=1, groups=self.groups)[:, :, ::down, ::across]


class Gate(nn.Module):
    """Two 1×1 convolutions, the sigmoid of one multiplied with the other, N×C×H×W.

    After Dauphin et al., "Language Modeling with Gated Convolutional Networks" (2017). One convolution and
    nn.GLU, which is the same, takes twice as long on a CPU.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.out_channels = outputs
        self.value, self.gate = convolution(inputs, outputs, 1), convolution(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * self.gate(x).sigmoid()


def normalised(*layers: nn.Module) -> list[nn.Module]:
    """The layers, then BatchNorm and SiLU, as a list; the last must be a convolution or a gate."""
    return [*layers, nn.BatchNorm2d(layers[-1].out_channels), nn.SiLU()]


def s8(classes: int, dropout: float, down: str = "dilation") -> Network:
    """What this project started from, 12 units of convolution, ReLU, BatchNorm, dropout; and its variants.

    `down` is how resolution falls twice. By "dilation" without padding, from 32 to 28 to 24 pixels: the
    original, whose table gives the sizes but not the dilation. Here it is 2, so that no tap of the
    kernel ever reads a border of zeros; dilation 3 with padding 1 would give the same sizes. By
    "stride" or "pooling", from 32 to 16 to 8.
    """
    ways = {"dilation": dict(dilation=2), "stride": dict(stride=2, padding=1), "pooling": dict(padding=1)}
    layers: list[nn.Module] = []
    inputs = 3
    for number, outputs in enumerate([16, 16, 32, 32, 64, 32, 32, 32, 64, 64, 128, 64], 1):
        kernel = 1 if number in (6, 12) else 3
        falls = number in (3, 9)
        options = ways[down] if falls else dict(padding=kernel // 2)
        layers.append(nn.Conv2d(inputs, outputs, kernel, bias=False, **options))
        layers += [nn.ReLU(inplace=True), nn.BatchNorm2d(outputs), nn.Dropout(dropout)]
        if falls and down == "pooling":
            layers.append(nn.MaxPool2d(2))
        inputs = outputs
    return Network(*layers, AdaptiveAvgPool2d(), nn.Conv2d(inputs, classes, 1, bias=False))


def fast(classes: int, dropout: float) -> Network:
    """Made to reach 85% quickly on a CPU: plain 3×3 convolutions at 16, 8 and 4 pixels.

    The 4×4 stem of stride 2 leaves a quarter of the positions, so that an image costs a seventh of what it
    does in `s8`. The stem has no BatchNorm: `whiten` gives its outputs unit variance. In trials SiLU learned
    a little more in an epoch than ReLU, at no cost that could be measured, and the second convolution at 16
    pixels brought what more epochs did not. Average pooling takes less time than max pooling and learns no
    less.
    """
    stem = [nn.Conv2d(3, 48, 4, stride=2, padding=1, bias=False), nn.SiLU()]
    at_16 = [*normalised(convolution(48, 48)), *normalised(convolution(48, 48)), nn.AvgPool2d(2)]
    at_8 = [*normalised(convolution(48, 64)), *normalised(convolution(64, 64)), nn.AvgPool2d(2)]
    at_4 = [*normalised(convolution(64, 72)), *normalised(convolution(72, 72)), nn.AdaptiveMaxPool2d(1)]
    head = [nn.Dropout(dropout), nn.Conv2d(72, classes, 1, bias=False)]
    return Network(*stem, *at_16, *at_8, *at_4, *head)


def accurate(classes: int, dropout: float) -> Network:
    """Made for the highest accuracy: separable convolutions in residual blocks at 32, 16 and 8 pixels.

    24 of them lie one behind the other. Chosen among six designs on held-out images (docs/accurate.md).
    """
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1, bias=False)]
    inputs = 32
    for stage, (count, width) in enumerate([(3, 32), (5, 64), (4, 128)]):
        for number in range(count):
            layers.append(PreActivation(inputs, width, stride=2 if stage and number == 0 else 1))
            inputs = width
    head = [nn.Dropout(dropout), nn.Conv2d(inputs, classes, 1, bias=False)]
    return Network(*layers, nn.BatchNorm2d(inputs), nn.ReLU(), AdaptiveAvgPool2d(), *head)


def dense(inputs: int, outputs: int, **options: int) -> list[nn.Module]:
    """Every output looks at every channel of a square."""
    return [convolution(inputs, outputs, **options)]


def asymmetric(inputs: int, outputs: int) -> list[nn.Module]:
    """3×1, then 1×3, after Szegedy et al., "Rethinking the Inception Architecture" (2016)."""
    tall = nn.Conv2d(inputs, outputs, (3, 1), padding=(1, 0), bias=False)
    return [tall, nn.Conv2d(outputs, outputs, (1, 3), padding=(0, 1), bias=False)]


def grouped(inputs: int, outputs: int) -> list[nn.Module]:
    """3×3 in four groups, then 1×1, after Xie et al., "Aggregated Residual Transformations" (2017)."""
    return [convolution(inputs, outputs, groups=4), convolution(outputs, outputs, 1)]


def separable(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """Depthwise 3×3, then 1×1, after Chollet, "Xception" (2017)."""
    return [Depthwise(inputs, stride), convolution(inputs, outputs, 1)]


def bottleneck(inputs: int, outputs: int) -> list[nn.Module]:
    """1×1 to half the channels, 3×3, 1×1, after He et al., "Deep Residual Learning" (2016)."""
    inner = outputs // 2
    return [
        *normalised(convolution(inputs, inner, 1)),
        *normalised(convolution(inner, inner)),
        convolution(inner, outputs, 1),
    ]


def inverted(inputs: int, outputs: int) -> list[nn.Module]:
    """1×1 to three times the channels, depthwise 3×3, 1×1, after Sandler et al., "MobileNetV2" (2018)."""
    inner = 3 * inputs
    return [
        *normalised(convolution(inputs, inner, 1)),
        *normalised(Depthwise(inner)),
        convolution(inner, outputs, 1),
    ]


def gated(inputs: int, outputs: int) -> list[nn.Module]:
    """Depthwise 3×3, then two 1×1, one of which says how much of the other passes."""
    return [Depthwise(inputs), Gate(inputs, outputs)]


def study(
    classes: int,
    dropout: float,
    widths: Sequence[int],
    kind: Callable[..., list[nn.Module]] = dense,
    down: str = "max",
    residual: bool = False,
) -> Network:
    """The skeleton in which kinds of convolution are compared: two units each at 16, 8 and 4 pixels.

    A unit is a `kind` of convolution, BatchNorm and SiLU. Stem and head are those of `fast`. `widths` are the
    channels of the three stages. `down` is how resolution falls between them: "max" and "average" pooling,
    "stride", or "dilation", which keeps 16 pixels and looks two and four times as far. With `residual` the
    input of a unit is added to its output where they have the same shape.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, 48, 4, stride=2, padding=1, bias=False), nn.SiLU()]
    inputs = 48
    for stage, width in enumerate(widths):
        if stage and down in ("max", "average"):
            layers.append(nn.MaxPool2d(2) if down == "max" else nn.AvgPool2d(2))
        for unit in range(2):
            options = {}
            if down == "dilation":
                options["dilation"] = 2**stage
            if down == "stride" and stage > 0 and unit == 0:
                options["stride"] = 2
            layer = normalised(*kind(inputs, width, **options))
            layers += [Residual(*layer)] if residual and inputs == width else layer
            inputs = width
    head = [nn.AdaptiveMaxPool2d(1), nn.Dropout(dropout), nn.Conv2d(inputs, classes, 1, bias=False)]
    return Network(*layers, *head)


# Widths for 190,000 to 199,999 parameters; a dense 3×3 is what the others are compared with.
PLAIN = [48, 64, 72]
STUDY = {
    "dense": partial(study, widths=PLAIN),
    "dense-5x5": partial(study, widths=[32, 36, 36], kind=partial(dense, kernel=5)),
    "asymmetric": partial(study, widths=[64, 80, 80], kind=asymmetric),
    "dilated": partial(study, widths=PLAIN, kind=partial(dense, dilation=2)),
    "grouped": partial(study, widths=[80, 104, 120], kind=grouped),
    "separable": partial(study, widths=[144, 192, 216], kind=separable),
    "bottleneck": partial(study, widths=[80, 104, 112], kind=bottleneck),
    "inverted": partial(study, widths=[56, 76, 88], kind=inverted),
    "gated": partial(study, widths=[104, 136, 152], kind=gated),
    "pointwise": partial(study, widths=[144, 192, 224], kind=partial(dense, kernel=1)),
    "dense-strided": partial(study, widths=PLAIN, down="stride"),
    "dense-averaged": partial(study, widths=PLAIN, down="average"),
    "dense-unpooled": partial(study, widths=PLAIN, down="dilation"),
    "dense-residual": partial(study, widths=PLAIN, residual=True),
}


NETWORKS = {
    "fast": fast,
    "accurate": accurate,
    "s8": s8,
    "s8-strided": partial(s8, down="stride"),
    "s8-pooled": partial(s8, down="pooling"),
    **STUDY,
}


def build(name: str, num_classes: int = 10, dropout: float = 0.0) -> Network:
    """The network `name` with fresh weights. NetworkError if unknown or of 200,000 parameters or more."""
    if name not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise NetworkError(f"unknown network {name!r}: choose one of {known} or add yours to NETWORKS first")
    network = NETWORKS[name](num_classes, dropout)
    if (count := count_parameters(network)) >= LIMIT:
        counts = {other: count_parameters(NETWORKS[other](num_classes, dropout)) for other in NETWORKS}
        smaller = [other for other in NETWORKS if counts[other] < LIMIT]
        fitting = f"; choose one of {', '.join(smaller)}" if smaller else ""
        raise NetworkError(
            f"network {name} has {count:,} parameters with {num_classes} classes; "
            f"fewer than {LIMIT:,} are allowed{fitting}"
        )
    return network


@torch.no_grad()
def refusal(network: nn.Module, size: int, num_classes: int) -> str:
    """Why the network gives no logits of images of `size`×`size` pixels, empty if it does.

    With nn.Linear at the end it takes only one size; without pooling it gives more than one for a class.
    """
    try:
        output = copy.deepcopy(network).eval()(torch.zeros(1, 3, size, size))
    except RuntimeError as error:
        return str(error).splitlines()[0]
    shape = "×".join(map(str, output.shape))
    return "" if output.shape == (1, num_classes) else f"an image gives {shape} values, not 1×{num_classes}"


@torch.no_grad()
def whiten(network: nn.Module, images: Tensor) -> None:
    """Make the first convolution the principal components of the patches it sees, and freeze it.

    Each component comes with its negative, both give unit variance. `images` are normalised, N×3×H×W. In a
    trial of ten epochs on CIFAR-10 re-encoded as JPEG an earlier `fast` reached 83.3% from such filters,
    82.2% from random ones. After David Page, "How to Train Your ResNet 8: Bag of Tricks" (2019). Raises
    NetworkError where the network does not begin with a convolution over all colours.
    """
    layer = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    if layer is None or (layer.in_channels, layer.groups) != (images.shape[1], 1):
        raise NetworkError("whiten=true needs a first convolution over all three colours; set whiten=false")
    patches = F.unfold(images, layer.kernel_size, layer.dilation, stride=layer.stride)
    patches = patches.transpose(1, 2).flatten(0, 1).double()
    variances, components = torch.linalg.eigh(patches.T.cov())  # in rising order
    count = min(layer.out_channels // 2, len(variances))
    filters = (components / (variances + 0.01).sqrt()).T.flip(0)[:count].view(count, *layer.weight.shape[1:])
    layer.weight[: 2 * count] = torch.cat([filters, -filters]).to(layer.weight)
    layer.weight.requires_grad_(False)


def load_weights(network: nn.Module, weights: dict[str, Tensor], last_layer: bool = True) -> None:
    """Give the network trained weights; without `last_layer` all others, for it has other classes.

    Raises NetworkError if they are those of other layers.
    """
    if not last_layer:
        own = network.state_dict()
        last = list(own)[-1].rpartition(".")[0] + "."  # such as "24.", which has a weight and maybe a bias
        weights = weights | {name: tensor for name, tensor in own.items() if name.startswith(last)}
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        raise NetworkError(
            "the weights are those of a network with other layers than it has now; "
            "use the version of model.py it was trained with"
        ) from None


def logits(network: nn.Module, images: Tensor, views: int = 1) -> Tensor:
    """Logits (N×classes) of images (N×3×H×W), the mean over 1, 2 or 6 views: test-time augmentation.

    1 is the image as it is; 2 also its mirror image; 6 both, also shifted by one pixel up-left and
    down-right, which count half. After Keller Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU"
    (2024).
    """
    if views == 1:
        return network(images).float()
    if views == 2:
        return (logits(network, images) + logits(network, images.flip(3))) / 2
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    shifted = (padded[..., 2:, 2:], padded[..., :-2, :-2])
    return logits(network, images, 2) / 2 + sum(logits(network, each, 2) for each in shifted) / 4


class Trained(nn.Module):
    """A trained network ready for use: images N×3×32×32, from 0 to 1, to logits N×classes.

    `classes` names the classes, `network` is the network itself, which takes normalised images.
    """

    def __init__(self, network: nn.Module, classes: list[str], mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network, self.classes = network, classes
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


def load(path: str | Path) -> Trained:
    """The trained network in a best.pt or last.pt, in eval mode: images N×3×32×32, 0 to 1, to logits.

    Only tensors and plain types are read from the file, so that one from a stranger cannot run code.
    """
    return ready(torch.load(path, map_location="cpu", weights_only=True))


def ready(saved: dict[str, Any]) -> Trained:
    """The network in what was read from a best.pt or last.pt, as `load` gives it."""
    network = build(saved["network"], len(saved["classes"]))
    load_weights(network, saved["weights"])
    return Trained(network, saved["classes"], saved["mean"], saved["std"]).eval()


def count_parameters(network: nn.Module) -> int:
    """How many parameters a network has, those included that `whiten` set for good."""
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(network: nn.Module) -> int:
    """Multiply-adds for one 3×32×32 image, as torch counts them (convolutions and matrix products)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(network).cpu().eval()(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops() // 2


def receptive_field(network: nn.Module) -> int:
    """Side in pixels of the input square that one position before the global pooling depends on.

    Each layer widens it by (kernel - 1)·dilation steps of the product of all strides before it. The shortcut
    of a block is passed over: it sees less than the block.
    """
    field, jump = 1, 1
    for name, layer in network.named_modules():
        if isinstance(layer, POOLING):
            break
        if "shortcut" not in name and isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            sizes = layer.kernel_size, layer.stride, getattr(layer, "dilation", 1)
            kernel, stride, dilation = (value[0] if isinstance(value, tuple) else value for value in sizes)
            field += (kernel - 1) * dilation * jump
            jump *= stride
    return field


def facts(network: nn.Module) -> str:
    """One line: parameters of those allowed, multiply-adds, receptive field."""
    return (
        f"{count_parameters(network):,} parameters of fewer than {LIMIT:,}, "
        f"{multiply_adds(network) / 1e6:.1f} million multiply-adds per image, "
        f"receptive field {receptive_field(network)} pixels"
    )


def summary(network: nn.Module) -> str:
    """torchsummary's table, of a copy: it moves BatchNorm's statistics and the random state.

    Of layers that torchsummary does not know, such as attention, there is a line that says so.
    """
    text = io.StringIO()
    try:
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(text):
            torchsummary.summary(copy.deepcopy(network).cpu().eval(), (3, 32, 32), device="cpu")
    except (AttributeError, TypeError) as error:  # it wants a tensor from every layer
        return f"note: torchsummary has no table for a network of such layers ({error})"
    return text.getvalue().rstrip()


def main(argv: list[str] | None = None) -> int:
    """Print the table of all networks, or the summary of the one named."""
    from harness.errors import Parser, one_line_errors  # here: who only imports the networks needs none of it

    parser = Parser(__doc__)
    parser.add_argument("network", nargs="?", metavar="NAME")
    with one_line_errors(NetworkError) as outcome:
        name = parser.parse_args(argv).network
        if name:
            network = build(name)
            print(summary(network))
            print(facts(network))
        else:
            print_table()
    return outcome.code


def print_table() -> None:
    """A line for each network: parameters, multiply-adds, receptive field."""
    print(f"{'network':<18}{'parameters':>12}{'multiply-adds':>16}{'receptive field':>18}")
    for name in NETWORKS:
        network = build(name)
        sizes = f"{count_parameters(network):>12,}{multiply_adds(network):>16,}"
        print(f"{name:<18}{sizes}{receptive_field(network):>15} px")


if __name__ == "__main__":
    sys.exit(main())
