import io
import itertools
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from data import Split
from harness import pictures
from harness.metrics import Row

INFO = SimpleNamespace(source="somewhere", classes=["cat", "dog"], scored_on="test")
ROWS = [Row(n, lr, 1, 50, 1, 50 + n, 1) for n, lr in ((1, 0.1), (2, 0.1), (3, 0.05))]
ODD = [
    "$x_1^2$",
    r"\\frac{1}{2} 5%",
    "_",
    "caf\udce9",
    "two\nlines",
    "\u732b\u4e2d\u0639\u0631\ud55c",
    "\N{GRINNING FACE}",
    "W" * 300,
    "",
]


def all_of(classes, source):
    """A function for each kind of picture that draws one with these names in it, by the name of the kind."""
    info = SimpleNamespace(source=source, classes=classes, scored_on="test")
    count, images = len(classes), torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    labels, logits = torch.arange(8) % count, torch.eye(count)[torch.arange(1, 9) % count]
    shares = 0.7 * torch.eye(count)[labels] + 0.3 / count
    return {
        "curves": lambda: pictures.curves(ROWS, info),
        "samples": lambda: pictures.samples(images, labels, info),
        "mixed samples": lambda: pictures.samples(images, shares, info),
        "mistakes": lambda: pictures.mistakes(Split(images, labels), logits, info),
        "confusion": lambda: pictures.confusion(labels, logits, info),
        "runs": lambda: pictures.over_seconds(dict.fromkeys(classes, ROWS)),
    }


KINDS = list(all_of(["cat"], "somewhere"))


def test_accuracy_is_drawn_over_the_seconds_spent_so_far():
    runs = {"a": [Row(1, 0, 0, 0, 0, 50.0, 2.0), Row(2, 0, 0, 0, 0, 60.0, 3.0)], "b": []}
    figure = pictures.over_seconds(runs)
    first, second = figure.axes[0].lines
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([2, 5], [50, 60])
    assert list(second.get_xdata()) == [] and first.get_color() != second.get_color()
    assert [text.get_text() for text in figure.legends[0].texts] == ["a", "b"]
    assert figure.axes[0].get_xlabel() == "seconds of training" and figure.axes[0].get_xscale() == "linear"


def test_a_long_run_beside_a_short_one_is_drawn_over_the_logarithm_of_minutes():
    runs = {
        "short": [Row(1, 0, 0, 0, 0, 50.0, 120.0)],
        "long": [Row(1, 0, 0, 0, 0, 60.0, 6000.0)],
        "none": [],
    }
    axes = pictures.over_seconds(runs).axes[0]
    assert [list(line.get_xdata()) for line in axes.lines] == [[2], [100], []]
    assert axes.get_xlabel() == "minutes of training" and axes.get_xscale() == "log"


def captions(figure):
    """The captions in a grid of pictures."""
    return [text.get_text() for text in figure.axes[0].texts]


def test_grid_shows_every_picture_under_its_caption():
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 8, 8)
    figure = pictures.grid(images, [["a"], ["b"], ["c"]], 2, "title: ", "source")
    shown, texts = figure.axes[0].images, figure.axes[0].texts
    assert captions(figure) == ["a", "b", "c"] and figure.get_suptitle() == "title: source"
    assert [picture.get_array().max() for picture in shown] == [0, 1, 2]
    frames = [Bbox(picture.get_window_extent().corners()[[0, 3]]) for picture in shown]
    for text, frame in zip(texts, frames):
        extent = text.get_window_extent()
        assert frame.x0 < extent.x0 < extent.x1 < frame.x1 and 0 < extent.y0 - frame.y1 < 10
        assert frame.width == pytest.approx(frame.height)
        assert figure.bbox.contains(*frame.p0) and figure.bbox.contains(*frame.p1)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(frames, 2))
    assert captions(pictures.grid(torch.zeros(0, 3, 8, 8), [], 5, "no mistakes", "")) == []


def test_mixed_samples_tell_their_shares():
    labels = torch.tensor([[0.75, 0.25], [1.0, 0.0]])
    figure = pictures.samples(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), labels, INFO)
    assert captions(figure) == ["cat 75%\ndog 25%", "cat 100%"]


def test_the_surest_mistakes_come_first_and_the_confusion_counts():
    labels = torch.tensor([0, 1, 0, 1])
    logits = torch.tensor([[1.0, 2.0], [0.0, 3.0], [0.0, 5.0], [4.0, 0.0]])
    figure = pictures.mistakes(Split(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), labels), logits, INFO)
    assert captions(figure) == ["dog 99%\n(is cat)", "cat 98%\n(is dog)", "dog 73%\n(is cat)"]
    figure = pictures.confusion(labels, logits, INFO)
    assert [text.get_text().split("\n")[0] for text in figure.axes[0].texts] == ["0", "2", "1", "1"]
    assert figure.get_suptitle() == "25.00% right on somewhere"


def test_curves_mark_where_the_learning_rate_falls():
    figure = pictures.curves(ROWS, INFO)
    assert figure.get_suptitle() == "53.00% test accuracy after the last epoch, on somewhere"
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[2.5, 2.5], [1, 2, 3], [1, 2, 3]]


def test_no_backend_is_asked_for():
    program = (
        "import os, sys; from harness import pictures; from harness.metrics import Row;"
        "content = pictures.png(lambda: pictures.over_seconds({'a': []}), 'a.png');"
        "assert content.startswith(b'\\x89PNG') and os.environ['MPLBACKEND'] == 'nonsense';"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = os.environ | {"MPLBACKEND": "nonsense"}
    root = Path(pictures.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=root, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("backend, kept", [("there", "there"), ("module://gone", "auto"), (None, "auto")])
def test_a_notebook_keeps_its_backend(backend, kept, tmp_path, monkeypatch):
    (tmp_path / "matplotlib.py").write_text(
        "import os\n"
        "class Settings(dict):\n"
        "    def __setitem__(self, name, value):\n"
        "        if value != 'there': raise ValueError(value)\n"
        "        super().__setitem__(name, value)\n"
        "rcParams = Settings(backend='auto')\n"
        "if 'MPLBACKEND' in os.environ: rcParams['backend'] = os.environ['MPLBACKEND']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "matplotlib")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    if backend:
        monkeypatch.setenv("MPLBACKEND", backend)
    pictures.import_matplotlib()
    settings = sys.modules["matplotlib"].rcParams
    assert settings["backend"] == kept and os.environ.get("MPLBACKEND") == backend
    settings |= {"backend": "chosen by the user"}
    monkeypatch.setenv("MPLBACKEND", "there")
    pictures.import_matplotlib()
    assert settings["backend"] == "chosen by the user"


def test_the_users_settings_of_matplotlib_change_no_picture_and_stay():
    draw = all_of(["cat", "dog"], "somewhere")["curves"]
    plain = pictures.png(draw, "curves.png")
    theirs = {"text.usetex": True, "font.family": ["no such font"], "figure.dpi": 30, "savefig.bbox": "tight"}
    theirs |= {
        "figure.autolayout": True,
        "axes.facecolor": "red",
        "savefig.format": "pdf",
        "lines.marker": "x",
    }
    with matplotlib.rc_context(theirs):
        assert pictures.png(draw, "curves.png") == plain
        assert {name: matplotlib.rcParams[name] for name in theirs} == theirs


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_all_kinds_are_drawn_as_they_are_written(kind, recwarn, capfd, monkeypatch):
    monkeypatch.setattr(pictures, "fonts_with", lambda letters: ())  # as on a machine without any
    draw, figures = all_of(ODD, "pictures in /tmp/$x_1$/\udce9/" + "very long/" * 40 + "end")[kind], []
    content = pictures.png(lambda: figures.append(draw()) or figures[-1], "picture.png")
    assert content.startswith(b"\x89PNG") and len(figures) == 1
    assert not recwarn.list and capfd.readouterr() == ("", "")
    texts = figures[0].findobj(Text)
    assert not any(text.get_parse_math() or text.get_usetex() for text in texts)
    written = "\n".join(text.get_text() for text in texts)
    if kind != "runs":  # which has no title
        assert (
            "pictures in /tmp/$x_1$/\N{REPLACEMENT CHARACTER}/very" in written and "very long/end" in written
        )
    if kind != "curves":
        for name in ("$x_1^2$", r"\\frac{1}{2} 5%", "caf\N{REPLACEMENT CHARACTER}", "WW…W", "\u732b\u4e2d"):
            assert name in written
        assert "two\N{REPLACEMENT CHARACTER}lines" in written


@pytest.mark.parametrize("kind", KINDS)
def test_long_names_stay_within_the_picture_and_apart(kind):
    figure = all_of(["W" * 300, "x" * 300], "pictures in " + "x/" * 300)[kind]()
    figure.draw_without_rendering()
    title = [text for text in figure.texts if "pictures in" in text.get_text()]
    assert title or kind == "runs"
    for text in [*title, *itertools.chain.from_iterable(legend.texts for legend in figure.legends)]:
        extent = text.get_window_extent()
        assert figure.bbox.contains(*extent.p0) and figure.bbox.contains(*extent.p1)
    assert all(axes.bbox.width > 0.3 * figure.bbox.width for axes in figure.axes if axes.axison)
    if kind in ("samples", "mixed samples", "mistakes"):
        extents = [text.get_window_extent() for text in figure.axes[0].texts]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(extents, 2))


@pytest.fixture
def font(tmp_path, monkeypatch):
    """Install a font that has one letter, for which no other font has anything; gives the letter."""
    letter = "\U000f1234"
    builder, pen = FontBuilder(1024), TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 1000), (2000, 1000), (2000, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord(letter): "cat"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "cat": (2048, 0)})
    builder.setupHorizontalHeader(ascent=1024, descent=0)
    builder.setupNameTable({"familyName": "Cats", "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(tmp_path / "cats.ttf")
    (tmp_path / "broken.ttf").write_text("no font")
    files = [str(tmp_path / name) for name in ("broken.ttf", "cats.ttf")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", font_manager.fontManager.ttflist[:])
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
    pictures.fonts_with.cache_clear()
    yield letter
    pictures.fonts_with.cache_clear()


def test_letters_come_from_an_installed_font_that_has_them(font, caplog):
    caplog.set_level(logging.WARNING)
    families = []

    def draw():
        families.append(matplotlib.rcParams["font.family"])
        return pictures.over_seconds({font: ROWS, font * 40: ROWS})

    assert pictures.png(draw, "picture.png").startswith(b"\x89PNG")
    assert families == [["sans-serif"], ["sans-serif", "Cats"]] and not caplog.records
    assert matplotlib.rcParams["font.family"] == ["sans-serif"]
    with pictures.defaults() as settings:
        boxes = draw().legends[0].texts[1].get_text()
        settings["font.family"] = families[1]
        assert len(draw().legends[0].texts[1].get_text()) < len(boxes)  # its letters are wider than boxes
    assert pictures.fonts_with(frozenset({"\U000f4321"})) == ()


def test_a_picture_that_cannot_be_drawn_is_a_note(capsys):
    def fail():
        raise RuntimeError("no\nink")

    assert pictures.png(fail, "curves.png") is None
    assert capsys.readouterr().out == "note: curves.png: could not be drawn (RuntimeError: no ink)\n"

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pictures.png(stop, "curves.png")
    assert matplotlib.rcParams["text.parse_math"]


@pytest.mark.parametrize("classes", [21, 200])
def test_the_confusion_of_many_classes_is_of_colours_and_bounded(classes):
    draw = all_of([f"class {number}" for number in range(classes)], "somewhere")["confusion"]
    with Image.open(io.BytesIO(pictures.png(draw, "confusion.png"))) as image:
        assert max(image.size) <= 1500
    axes, scale = draw().axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert (
        not axes.texts and 20 < len(names) <= 100 and names[:2] == ["class 0", f"class {classes // 100 or 1}"]
    )
    assert axes.images[0].get_array().max() == 100 and "true class" in scale.get_ylabel()


def test_the_legend_names_every_run():
    names = ["_a", "b", *map(str, range(60))]
    figure = pictures.over_seconds(dict.fromkeys(names, ROWS), accuracy="held-out accuracy")
    figure.draw_without_rendering()
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.texts] == names
    assert figure.bbox.contains(*legend.get_window_extent().p0)
    assert figure.axes[0].get_ylabel() == "held-out accuracy (%)"


def test_the_ending_tells_the_kind_of_file():
    draw = all_of(["cat"], "somewhere")["curves"]
    for ending, first in ((".JPG", b"\xff\xd8"), (".svg", b"<?xml"), (".png", b"\x89PNG")):
        assert pictures.render(draw, f"curves{ending}").startswith(first)
    for name in ("curves.doc", "curves"):
        with pytest.raises(pictures.PictureError, match=rf"^{name}: .*\.png"):
            pictures.render(draw, name)
