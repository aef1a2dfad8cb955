import dataclasses
from types import SimpleNamespace

import pytest

from harness import report, settings


def run_of(**changes):
    return dataclasses.replace(settings.read(), **changes)


def test_time_left_knows_that_small_images_are_quicker():
    asked = run_of(epochs=10, small_epochs=4, small_size=16, leave_out=0)
    in_proportion = 3 * 2 + 6 * 8 + 9 * 0.5  # full images have four times the pixels
    assert report.seconds_left(asked, [2.0], 0.5) == pytest.approx(in_proportion)
    assert report.seconds_left(asked, [2.0, 4.0, 3.0, 3.0], 0.5) == pytest.approx(6 * 12 + 6 * 0.5)
    measured = 4 * 9 + 4
    assert report.seconds_left(asked, [3.0] * 4 + [10.0, 8.0], 1) == pytest.approx(measured)
    assert report.seconds_left(asked, [3.0] * 10, 1) == 0
    assert report.seconds_left(run_of(epochs=3, small_epochs=9), [2.0], 0) == 4
    assert report.seconds_left(run_of(epochs=3, small_epochs=0), [2.0], 1) == 6


def test_time_left_knows_that_epochs_with_images_left_out_are_quicker():
    asked = run_of(epochs=10, small_epochs=0, leave_out=0.5)  # in the epochs 3 to 8
    assert report.seconds_left(asked, [4.0], 1) == pytest.approx(4 + 6 * 2 + 2 * 4 + 9)
    assert report.seconds_left(asked, [4.0, 4.0, 2.0, 2.0], 0) == pytest.approx(4 * 2 + 2 * 4)


def test_every_epoch_says_how_long_is_left(call, arguments):
    lines = [line for line in call(*arguments, "epochs=3")[1].splitlines() if line.startswith("epoch ")]
    assert (
        len(lines) == 3 and all(line.endswith(" left") for line in lines) and lines[2].endswith(" 00:00 left")
    )


def test_an_epoch_that_leaves_images_out_says_so(call, arguments):
    lines = call(*arguments, "epochs=5", "leave_out=0.4")[1].splitlines()
    said = ["% of the hardest 76% " in line for line in lines if line.startswith("epoch ")]
    assert said == [False, True, True, False, False]  # 16 of 21: whole batches


def test_the_bar_reads_the_meter_only_when_it_is_drawn():
    drawn, done, shown = iter([True, False, None, True]), [], []
    bar = SimpleNamespace(
        n=3,
        update=lambda more: done.append(more) or next(drawn),
        set_postfix_str=lambda text, refresh: shown.append(text),
    )
    report.Bar.show(bar, 4, SimpleNamespace(so_far=lambda: (1.5, 50.0)))
    report.Bar.show(bar, 5, None)  # reading it now would fail
    report.Bar.show(bar, 3, None)
    assert shown == ["loss 1.5000, 50.00%"] and done == [1, 2, 0]


def test_a_bar_off_the_terminal_shows_nothing(capsys):
    with report.Bar(1, 3, 0) as bar:
        bar.show(1, None)
    assert capsys.readouterr().err == ""
