"""Several runs side by side: a table, and their curves in one picture.

    python -m tools.compare runs/*
    python -m tools.compare --picture comparison.png runs/a runs/b

The table has a column for every setting in which the runs differ.
"""

import dataclasses
import math
import sys
from pathlib import Path

import model
from harness import folder, pictures
from harness import settings as configuration
from harness.errors import Parser, UserError, one_line_errors
from harness.metrics import Row, best
from harness.settings import Settings

APART = {"network", "out"}  # shown in columns of their own
Run = tuple[Settings, list[Row]]  # settings and rows of metrics.csv


def main(argv: list[str] | None = None) -> int:
    """Print the table and draw the picture. Exit code 2 if a folder holds no run."""
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--picture", default="comparison.png", metavar="FILE")
    with one_line_errors() as outcome:
        arguments = parser.parse_args(argv)
        runs = {name: read(Path(name)) for name in arguments.runs}
        lines = table(runs)
        widths = [max(map(len, column)) for column in zip(*lines)]
        for line in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
        figure = pictures.over_seconds({name: rows for name, (_, rows) in runs.items()})
        folder.write_picture(Path(arguments.picture), figure)
        print(f"curves in {arguments.picture}")
    return outcome.code


def read(path: Path) -> Run:
    """The run in a folder. UserError where there is none."""
    try:
        return configuration.read(config=path / "config.yaml"), folder.read_metrics(path / "metrics.csv")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: holds no run ({error})") from None


def table(runs: dict[str, Run]) -> list[list[str]]:
    """The cells of the table, its head first."""
    asked = [dataclasses.asdict(settings) for settings, _ in runs.values()]
    differ = [name for name in configuration.FIELDS if len({settings[name] for settings in asked}) > 1]
    differ = [name for name in differ if name not in APART]
    lines = [["run", "network", "parameters", *differ, "epochs done", "last %", "best %", "seconds"]]
    for name, (settings, rows) in runs.items():
        parameters = model.count_parameters(model.build(settings.network))
        changed = [str(getattr(settings, setting)) for setting in differ]
        accuracies = (rows[-1].test_accuracy, best(rows).test_accuracy) if rows else (math.nan, math.nan)
        scores = [*(f"{value:.2f}" for value in accuracies), f"{sum(row.seconds for row in rows):.0f}"]
        lines.append([name, settings.network, f"{parameters:,}", *changed, str(len(rows)), *scores])
    return lines


if __name__ == "__main__":
    sys.exit(main())
