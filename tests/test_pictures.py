import itertools

import pytest
import torch
from matplotlib.transforms import Bbox

from data import About, Split
from harness import pictures
from harness.metrics import Row

ABOUT = About("somewhere", ["cat", "dog"], [0.5] * 3, [0.25] * 3, 4, 4, "test")


def test_accuracy_is_drawn_over_the_seconds_spent_so_far():
    runs = {"a": [Row(1, 0, 0, 0, 0, 50.0, 2.0), Row(2, 0, 0, 0, 0, 60.0, 3.0)], "b": []}
    figure = pictures.over_seconds(runs, "title")
    first, second = figure.axes[0].lines
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([2, 5], [50, 60])
    assert list(second.get_xdata()) == [] and first.get_color() != second.get_color()
    assert [text.get_text() for text in figure.legends[0].texts] == ["a", "b"]
    assert figure.get_suptitle() == "title"


def captions(figure):
    """The captions in a grid of pictures."""
    return [text.get_text() for text in figure.axes[0].texts]


def test_grid_shows_every_picture_under_its_caption():
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 8, 8)
    figure = pictures.grid(images, ["a", "b", "c"], 2, "title")
    shown, texts = figure.axes[0].images, figure.axes[0].texts
    assert captions(figure) == ["a", "b", "c"]
    assert [picture.get_array().max() for picture in shown] == [0, 1, 2]
    frames = [Bbox(picture.get_window_extent().corners()[[0, 3]]) for picture in shown]
    for text, frame in zip(texts, frames):
        extent = text.get_window_extent()
        assert frame.x0 < extent.x0 < extent.x1 < frame.x1 and 0 < extent.y0 - frame.y1 < 10
        assert frame.width == pytest.approx(frame.height)
        assert figure.bbox.contains(*frame.p0) and figure.bbox.contains(*frame.p1)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(frames, 2))
    assert captions(pictures.grid(torch.zeros(0, 3, 8, 8), [], 5, "no mistakes")) == []


def test_mixed_samples_tell_their_shares():
    labels = torch.tensor([[0.75, 0.25], [1.0, 0.0]])
    figure = pictures.samples(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), labels, ABOUT)
    assert captions(figure) == ["cat 75%\ndog 25%", "cat 100%"]


def test_the_surest_mistakes_come_first_and_the_confusion_counts():
    labels = torch.tensor([0, 1, 0, 1])
    logits = torch.tensor([[1.0, 2.0], [0.0, 3.0], [0.0, 5.0], [4.0, 0.0]])
    figure = pictures.mistakes(Split(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), labels), logits, ABOUT)
    assert captions(figure) == ["dog 99%\n(is cat)", "cat 98%\n(is dog)", "dog 73%\n(is cat)"]
    figure = pictures.confusion(labels, logits, ABOUT)
    assert [text.get_text().split("\n")[0] for text in figure.axes[0].texts] == ["0", "2", "1", "1"]
    assert figure.axes[0].get_title() == "25.00% right on somewhere"


def test_curves_mark_where_the_learning_rate_falls():
    rows = [Row(n, lr, 1, 50, 1, 50 + n, 1) for n, lr in ((1, 0.1), (2, 0.1), (3, 0.05))]
    figure = pictures.curves(rows, ABOUT)
    assert figure.get_suptitle() == "53.00% test accuracy after the last epoch, on somewhere"
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[2.5, 2.5], [1, 2, 3], [1, 2, 3]]
