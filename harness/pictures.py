"""The pictures in a run folder, drawn from what is recorded there. Each drawing function returns a figure.

`png` and `render` make files of them, on any machine: under matplotlib's own defaults, whatever the user's
matplotlibrc, notebook or terminal asks for, and with fonts that have the letters. matplotlib is imported when
the first picture is drawn: that takes half a second, and if it fails, a picture is missing and no more.
"""

import functools
import io
import itertools
import logging
import os
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.errors import UserError, say
from harness.metrics import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from data import Info, Split

# Okabe and Ito's colours, for the colour-blind.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]
TRAIN, TEST = COLOURS[:2]
LINES = ["-", "--", ":", "-."]  # for more runs than colours
COUNTED = 20  # classes: a confusion of more shows colours alone, for numbers would take minutes to draw
NAMED = 100  # classes: of more, some go without their name


class PictureError(UserError):
    """A picture that cannot be drawn; the message is one line that says why."""


def png(draw: Callable[[], "Figure"], name: str) -> bytes | None:
    """The picture that `draw` makes as the bytes of a PNG file.

    Where it cannot be drawn, a note with its `name` says so, and None is returned: no training ends for that.
    """
    try:
        return render(draw, name)
    except UserError as error:
        say(f"note: {error}")
        return None


def render(draw: Callable[[], "Figure"], path: str | Path) -> bytes:
    """The picture that `draw` makes as the bytes of the file `path`, whose ending tells the kind.

    `draw` is called a second time if its texts need other fonts. PictureError where it fails, or the ending
    is unknown.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    try:
        with defaults() as settings:
            figure = draw()
            if families := fonts_for(figure):
                settings["font.family"] = [*settings["font.family"], *families]
                figure = draw()
            kinds = figure.canvas.get_supported_filetypes()
            if kind in kinds:
                buffer = io.BytesIO()
                figure.savefig(buffer, format=kind)
                return buffer.getvalue()
    except UserError:
        raise
    except Exception as error:  # whatever matplotlib, the fonts or the settings of a machine come up with
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise PictureError(f"{path}: could not be drawn ({reason[:300]})") from None
    raise PictureError(f"{path}: give it one of the endings .{', .'.join(sorted(kinds))}")


@contextmanager
def defaults() -> Iterator[dict[str, Any]]:
    """matplotlib's own settings for the block, which may change them; nothing it has to say is printed.

    Every text is taken as it is written: a $ begins no formula.
    """
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as that no font has a letter
            import_matplotlib()
            import matplotlib

            own = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
            with matplotlib.rc_context(own | {"text.parse_math": False}):
                yield matplotlib.rcParams
    finally:
        log.setLevel(level)


def import_matplotlib() -> None:
    """Import matplotlib, also where MPLBACKEND asks for a backend that is not installed.

    Notebooks have their commands inherit one. No picture needs it, for none is shown in a window.
    """
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):  # raised for one that is not there
            matplotlib.rcParams["backend"] = backend  # for plots that the user's own code shows


def fonts_for(figure: "Figure") -> tuple[str, ...]:
    """Families of installed fonts that have what matplotlib's usual font lacks of the figure's texts."""
    from matplotlib.font_manager import FontProperties, findfont, get_font
    from matplotlib.text import Text

    texts = "".join(text.get_text() for text in figure.findobj(Text))
    if texts.isascii():
        return ()
    usual = get_font(findfont(FontProperties()))
    return fonts_with(frozenset(letter for letter in texts if not usual.get_char_index(ord(letter))))


@functools.lru_cache
def fonts_with(letters: frozenset[str]) -> tuple[str, ...]:
    """Families of installed fonts that have these letters between them, or most of them, in few fonts."""
    from matplotlib import font_manager

    if not letters:
        return ()
    known = {font.fname for font in font_manager.fontManager.ttflist}
    for path in set(font_manager.findSystemFonts()) - known:  # matplotlib's list may be older than a font
        with suppress(Exception):  # it reads only outline fonts
            font_manager.fontManager.addfont(path)
    found: dict[str, set[str]] = {}  # the letters each family has
    for family in sorted(font_manager.get_font_names()):
        if "lastresort" in family.replace(" ", "").lower():  # its letters are boxes
            continue
        with suppress(Exception):
            path = font_manager.findfont(font_manager.FontProperties(family=[family]))
            font = font_manager.get_font(path)
            has = {letter for letter in letters if font.get_char_index(ord(letter))}
            font.set_size(10, 100)
            font.set_text("".join(has))  # fails where the letters are no outlines
            found[family] = has
    families, missing = [], set(letters)
    while best := max(found, key=lambda family: len(found[family] & missing), default=None):
        if not found[best] & missing:
            break
        families.append(best)
        missing -= found.pop(best)
    return tuple(families)


def empty(width: float, height: float, **options: Any) -> "Figure":
    """A figure of so many inches, which belongs to no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), **options)


def fitted(text: str, inches: float, size: float, before: str = "") -> str:
    """`before` and the text on one line, the text shortened in its middle until both are no wider.

    `size` is that of the font in points. What has no form, such as a line break or a byte of a file name that
    is not UTF-8, becomes a replacement character.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    text = unicodedata.normalize("NFC", text)
    text = "".join("\ufffd" if unicodedata.category(each) in ("Cc", "Cs") else each for each in text)
    whole, keep, font = text, len(text), FontProperties(size=size)
    while keep and len(before + text) * size > 72 * inches:  # few letters are wider than high, so most fit
        width = text_to_path.get_text_width_height_descent(before + text, font, False)[0] / 72
        if 1.07 * width <= inches:  # drawn on whole pixels, small letters are so much wider
            break
        keep = min(keep - 1, int(keep * inches / (1.07 * width)))
        text = f"{whole[: keep - keep // 2]}…{whole[len(whole) - keep // 2 :]}"
    return before + text


def curves(rows: Sequence[Row], info: "Info") -> "Figure":
    """Loss and accuracy of train and test over epochs, the falls of the learning rate marked."""
    epochs = [row.epoch for row in rows]
    falls = [before.epoch + 0.5 for before, row in itertools.pairwise(rows) if row.lr < before.lr]
    figure = empty(10, 4.2, layout="constrained")
    accuracy = f"{rows[-1].test_accuracy:.2f}% {info.scored_on} accuracy"
    title = fitted(info.source, 9.6, 11, before=f"{accuracy} after the last epoch, on ")
    figure.suptitle(title, fontsize=11)
    for axes, name, unit in zip(figure.subplots(1, 2), ("loss", "accuracy"), ("", " (%)")):
        for fall in falls:
            label = "learning rate falls" if fall == falls[0] else None
            axes.axvline(fall, color="0.8", linewidth=1, label=label)
        for part, colour, marker in (("train", TRAIN, "o"), ("test", TEST, "s")):
            values = [getattr(row, f"{part}_{name}") for row in rows]
            label = part if part == "train" else info.scored_on
            axes.plot(epochs, values, color=colour, marker=marker, markersize=3, label=label)
        axes.set(xlabel="epoch", ylabel=name + unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def over_seconds(runs: Mapping[str, Sequence[Row]], accuracy: str = "test accuracy") -> "Figure":
    """Accuracy over the time of training, a line a run: `runs` maps labels to rows of metrics.csv.

    Long runs are drawn over minutes, and runs of very different length over their logarithm.
    """
    lengths = [seconds for rows in runs.values() if (seconds := sum(row.seconds for row in rows))]
    unit, name = (60, "minutes") if max(lengths, default=0) > 600 else (1, "seconds")
    figure = empty(9, max(5, 0.22 * len(runs) + 0.5), layout="constrained")
    axes = figure.subplots()
    for number, rows in enumerate(runs.values()):
        colour, line = COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]
        spent = list(itertools.accumulate(row.seconds / unit for row in rows))
        scores = [row.test_accuracy for row in rows]
        axes.plot(spent, scores, marker="o", markersize=3, color=colour, linestyle=line)
    axes.set(xlabel=f"{name} of training", ylabel=f"{accuracy} (%)")
    if lengths and max(lengths) > 20 * min(lengths):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    numbers = [str(number) for number in range(len(runs))]
    legend = figure.legend(axes.lines, numbers, loc="outside right center", frameon=False)
    for text, label in zip(legend.get_texts(), runs):  # only now: a legend leaves out names that begin with _
        text.set_text(fitted(label, 3, 10))
    return figure


def grid(
    images: Tensor, captions: Sequence[Sequence[str]], columns: int, title: str, source: str
) -> "Figure":
    """Pictures (N×3×H×W, uint8) in rows, each under the lines of its caption, two at most.

    Title and `source` stand above. All in one panel, whose unit is the inch: with a panel each it takes five
    times as long to draw.
    """
    width, height, side, size = 1.45, 1.75, 1.3, 8  # of a place, of the picture in it, of the letters
    rows = max(1, -(-len(images) // columns))
    figure = empty(width * columns, height * rows + 0.5)
    title = fitted(source, width * columns - 0.4, 11, before=title)
    figure.suptitle(title, fontsize=11, y=1 - 0.25 / figure.get_figheight(), va="center")
    axes = figure.add_axes((0, 0, 1, height * rows / figure.get_figheight()))
    for number, (image, lines) in enumerate(zip(images, captions)):
        row, column = divmod(number, columns)
        middle, bottom = (column + 0.5) * width, (row + 1) * height - 0.05
        frame = (middle - side / 2, middle + side / 2, bottom, bottom - side)
        axes.imshow(image.permute(1, 2, 0).numpy(), extent=frame, aspect="auto", interpolation="nearest")
        caption = "\n".join(fitted(line, width - 0.07, size) for line in lines)
        axes.text(middle, frame[3] - 0.05, caption, ha="center", va="bottom", fontsize=size, linespacing=1.3)
    axes.set(xlim=(0, width * columns), ylim=(height * rows, 0), xticks=[], yticks=[])
    axes.axis("off")
    return figure


def samples(images: Tensor, labels: Tensor, info: "Info") -> "Figure":
    """Training images (N×3×H×W, uint8) as the network sees them; labels as a Loader gives them."""
    if labels.ndim == 1:
        captions = [[info.classes[label]] for label in labels.tolist()]
    else:
        captions = [list(shares(row, info.classes)) for row in labels]
    return grid(images, captions, 8, "what the network is trained on: ", info.source)


def shares(row: Tensor, classes: Sequence[str]) -> Iterable[str]:
    """The two largest of the shares of classes in a mixed image, in words."""
    for share, label in zip(*map(Tensor.tolist, row.topk(2))):
        if share > 0:
            yield f"{classes[label]} {100 * share:.0f}%"


def mistakes(split: "Split", logits: Tensor, info: "Info") -> "Figure":
    """The 25 wrong answers the network was surest of; `logits` are N×classes."""
    confidence, predicted = logits.softmax(1).max(1)
    wrong = (predicted != split.labels).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True)][:25]
    captions = [
        [f"{info.classes[predicted[i]]} {100 * confidence[i]:.0f}%", f"(is {info.classes[split.labels[i]]})"]
        for i in worst
    ]
    return grid(split.images[worst], captions, 5, "surest mistakes on ", info.source)


def confusion(labels: Tensor, logits: Tensor, info: "Info") -> "Figure":
    """How many images of each class were taken for which: counts, and percent of the true class.

    Of more than COUNTED classes colours alone, with a scale beside them.
    """
    from matplotlib.colors import PowerNorm

    n, predicted = len(info.classes), logits.argmax(1)
    counts = (labels * n + predicted).bincount(minlength=n * n).view(n, n)
    percent = 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)
    few = n <= COUNTED
    width, height = (max(5.5, 2.5 + 0.75 * n), 2 + 0.62 * n) if few else (14, 13)
    figure = empty(width, height, layout="constrained")
    axes: Axes = figure.subplots()
    # Square root: the few per cent off the diagonal are what one looks for.
    image = axes.imshow(percent.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 100), aspect="auto")
    if few:
        write_counts(axes, counts, percent)
    else:
        figure.colorbar(image, label="% of the true class")
    size, named = 10 if few else 7, range(0, n, -(-n // NAMED))
    names = [fitted(info.classes[label], 1.3, size) for label in named]
    axes.set_xticks(named, names, fontsize=size, rotation=45 if few else 90, ha="right" if few else "center")
    axes.set_yticks(named, names, fontsize=size)
    axes.set(xlabel="answer of the network", ylabel="true class")
    right = (labels == predicted).to(torch.float64).mean()
    title = fitted(info.source, width - 0.4, 11, before=f"{100 * right:.2f}% right on ")
    figure.suptitle(title, fontsize=11)
    axes.spines[:].set_visible(False)
    return figure


def write_counts(axes: "Axes", counts: Tensor, percent: Tensor) -> None:
    """Write into each cell how many images it stands for, and their share; both are classes×classes."""
    for row, column in itertools.product(range(len(counts)), repeat=2):
        text = f"{counts[row, column]}\n{percent[row, column]:.1f}%"
        colour = "white" if percent[row, column] > 45 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
