"""Several runs side by side: a table, and their curves in one picture.

    python -m tools.compare runs/*
    python -m tools.compare --picture comparison.png runs/a runs/b

The table has a column for every setting in which the runs differ. A run that cannot be read is named and left
out. The ending of the picture's name may also be .jpg, .pdf or .svg.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for python tools/compare.py
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while torch loads ends without a traceback

import model
from harness import checkpoint, folder, pictures
from harness import settings as configuration
from harness.errors import Parser, UserError, one_line_errors
from harness.metrics import Row, best
from tools import paths

if TYPE_CHECKING:
    from matplotlib.figure import Figure

APART = {"network", "out"}  # shown in columns of their own
NOT_TRAINED = ("running_mean", "running_var", "num_batches_tracked")  # BatchNorm's statistics
UNKNOWN = "-"


class Run(NamedTuple):
    """What is known of a run."""

    path: Path
    settings: dict[str, str]  # as text; an earlier version had others
    rows: list[Row]
    scored_on: str  # "test" or "held-out"


def main(argv: list[str] | None = None) -> int:
    """Print the table and draw the picture. Exit code 2 if a run could not be read, after all others."""
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN")
    parser.add_argument("--picture", default="comparison.png", metavar="FILE", type=Path)
    with one_line_errors() as outcome:
        arguments = parser.parse_intermixed_args(argv)
        if not arguments.runs:
            raise UserError("name the folders of the runs: python -m tools.compare runs/*")
        runs = []
        for path in dict.fromkeys(paths(arguments.runs)):  # each once
            try:
                runs.append(read(path))
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                outcome.code = 2
        if runs:
            lines = table(runs)
            widths = [max(map(len, column)) for column in zip(*lines)]
            for line in lines:
                print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
            folder.write_whole(arguments.picture, pictures.render(lambda: curves(runs), arguments.picture))
            print(f"curves in {arguments.picture}")
    return outcome.code


def read(path: Path) -> Run:
    """The run in a folder. UserError where there is none, or its files are damaged."""
    if not os.path.isdir(path):
        raise UserError(f"{path}: is no run folder")
    metrics = path / "metrics.csv"
    settings = configuration.of_begun_run(path)
    try:
        rows = folder.read_metrics(metrics)
        with open(metrics, encoding="utf-8", errors="replace") as file:
            scored_on = "held-out" if "heldout" in file.readline() else "test"
    except OSError as error:
        raise UserError(f"{metrics}: cannot be read ({error.strerror or error})") from None
    return Run(path, {name: value(name, text) for name, text in settings.items()}, rows, scored_on)


def value(name: str, text: configuration.Text) -> str:
    """A setting as text, the same for all ways to write it; one that is no longer known as it stands."""
    try:
        converted = configuration.convert(name, text)
    except UserError:
        return text.value
    return "empty" if converted in (None, "") else str(converted)


def table(runs: Sequence[Run]) -> list[list[str]]:
    """The cells of the table, its head first."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in APART)
    differ = [name for name in names if len({run.settings.get(name) for run in runs}) > 1]
    lines = [["run", "network", "parameters", *differ, "epochs done", "last %", "best %", "seconds"]]
    for run in runs:
        changed = [run.settings.get(name, UNKNOWN) for name in differ]
        scores = [UNKNOWN, UNKNOWN]
        if run.rows:
            scores = [f"{row.test_accuracy:.2f}" for row in (run.rows[-1], best(run.rows))]
        seconds = f"{sum(row.seconds for row in run.rows):.0f}"
        network = run.settings.get("network", UNKNOWN)
        lines.append(
            [str(run.path), network, parameters(run), *changed, str(len(run.rows)), *scores, seconds]
        )
    if any(run.scored_on != "test" for run in runs):
        for line, last in zip(lines, ["scored on", *(run.scored_on for run in runs)], strict=True):
            line.append(last)
    return lines


def parameters(run: Run) -> str:
    """How many parameters the run's network has, as its weights tell, else as it is built for ten classes."""
    for name in ("best.pt", "last.pt", "weights.pt"):
        try:
            weights = checkpoint.load(run.path / name)["weights"]
        except UserError:  # there is none
            continue
        return f"{sum(each.numel() for layer, each in weights.items() if not layer.endswith(NOT_TRAINED)):,}"
    try:
        return f"{model.count_parameters(model.build(run.settings.get('network', UNKNOWN))):,}"
    except model.NetworkError:  # one of the user's own
        return "?"


def curves(runs: Sequence[Run]) -> "Figure":
    """Accuracy over seconds of training; each run says on which images, where they differ in that."""
    kinds = {run.scored_on for run in runs}
    if len(kinds) == 1:
        labels = {str(run.path): run.rows for run in runs}
        return pictures.over_seconds(labels, accuracy=f"{kinds.pop()} accuracy")
    labels = {f"{run.path} ({run.scored_on})": run.rows for run in runs}
    return pictures.over_seconds(labels, accuracy="accuracy")


if __name__ == "__main__":
    sys.exit(main())
