"""Seconds and epochs of training until the test accuracy first passes 80, 85 and 90%, over several seeds.

    python -m benchmarks.time_to_accuracy --seeds 3 dataset=folder data_dir=data/pictures
    python -m benchmarks.time_to_accuracy --config recipes/accurate.yaml    # with a recipe
    python -m benchmarks.time_to_accuracy --runs runs/NAME ...          # of runs made before

Read from metrics.csv, whose seconds are of training alone; what the tests and the rest of the run took is stated beside them.
"""

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path

import files
import train

GOALS = (80, 85, 90)


def passed(folder):
    """For each goal (seconds, epochs) of training when the test accuracy first reached it, or None."""
    rows = files.read_metrics(Path(folder) / "metrics.csv")
    spent = list(itertools.accumulate(row["seconds"] for row in rows))
    return [next(((seconds, row["epoch"]) for seconds, row in zip(spent, rows) if row["test_accuracy"] >= goal), None) for goal in GOALS]


def spread(values):
    """Mean and standard deviation as text."""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def main(argv=None):
    """Train with each seed unless runs are given, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="name=value")
    parser.add_argument("--config", metavar="FILE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", nargs="+", metavar="RUN")
    arguments = parser.parse_intermixed_args(argv)
    folders, elsewhere = arguments.runs or [], []
    if not folders:
        command = [*arguments.settings, *(["--config", arguments.config] if arguments.config else [])]
        stem = f"runs/time-{time.strftime('%Y%m%d-%H%M%S')}"
        for seed in range(arguments.seeds):
            folders.append(f"{stem}-seed{seed}")
            began = time.perf_counter()
            if code := train.main([*command, f"seed={seed}", f"out={folders[-1]}"]):
                return code
            elsewhere.append(time.perf_counter() - began - sum(row["seconds"] for row in files.read_metrics(Path(folders[-1]) / "metrics.csv")))
    results = [passed(folder) for folder in folders]
    for goal, reached in zip(GOALS, zip(*results)):
        if None in reached:
            print(f"{goal}%: reached by {len(reached) - reached.count(None)} of {len(reached)}")
        else:
            seconds, epochs = zip(*reached)
            print(f"{goal}%: {spread(seconds)} seconds of training, {spread(epochs)} epochs (n = {len(reached)})")
    last = [files.read_metrics(Path(folder) / "metrics.csv")[-1]["test_accuracy"] for folder in folders]
    print(f"last epoch's test accuracy {spread(last)}% (n = {len(last)}): {', '.join(f'{value:.2f}' for value in last)}")
    if elsewhere:
        print(f"beside the training, each run took {spread(elsewhere)} seconds (loading, tests, checkpoints, pictures)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
