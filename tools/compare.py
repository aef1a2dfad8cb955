"""Several runs side by side: a table, and their curves in one picture.

    python -m tools.compare runs/*
    python -m tools.compare --picture comparison.png runs/a runs/b
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import files
import model
import pictures
import settings as configuration

APART = {"network", "out"}  # shown in columns of their own


def main(argv=None):
    """Print the table and draw the picture; exit code 2 if a folder holds no run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--picture", default="comparison.png", metavar="FILE")
    arguments = parser.parse_args(argv)
    try:
        found = [(configuration.read(config=Path(run, "config.yaml")), files.read_metrics(Path(run, "metrics.csv"))) for run in arguments.runs]
    except (configuration.SettingsError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    differ = [field.name for field in dataclasses.fields(configuration.Settings)
              if field.name not in APART and len({getattr(settings, field.name) for settings, _ in found}) > 1]
    table = [["run", "network", "parameters", *differ, "epochs done", "last %", "best %", "seconds"]]
    for run, (settings, rows) in zip(arguments.runs, found):
        accuracies = [row["test_accuracy"] for row in rows]
        table.append([run, settings.network, f"{model.count_parameters(model.build(settings.network)):,}", *(str(getattr(settings, name)) for name in differ),
                      str(len(rows)), *(f"{value:.2f}" for value in (accuracies[-1:] or [float("nan")]) + [max(accuracies, default=float("nan"))]),
                      f"{sum(row['seconds'] for row in rows):.0f}"])
    widths = [max(map(len, column)) for column in zip(*table)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    pictures.write(arguments.picture, pictures.over_seconds({run: rows for run, (_, rows) in zip(arguments.runs, found)}))
    print(f"curves in {arguments.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
