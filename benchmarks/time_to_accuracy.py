"""Seconds and epochs of training until the test accuracy first passes 80, 85 and 90%, over several seeds.

    python -m benchmarks.time_to_accuracy --seeds 3 dataset=folder data_dir=data/pictures
    python -m benchmarks.time_to_accuracy --config recipes/accurate.yaml    # with a recipe
    python -m benchmarks.time_to_accuracy --runs runs/NAME ...              # of runs made before

Read from metrics.csv, whose seconds are of training alone; what the rest of the run took is stated
beside them.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import train
from harness import folder

GOALS = (80, 85, 90)  # percent


def main(argv: list[str] | None = None) -> int:
    """Train with each seed unless runs are given, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", metavar="name=value")
    parser.add_argument("--config", metavar="FILE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", nargs="+", metavar="RUN")
    arguments = parser.parse_intermixed_args(argv)
    folders, beside = arguments.runs or [], []
    if not folders:
        command = [*arguments.settings, *(["--config", arguments.config] if arguments.config else [])]
        stem = f"runs/time-{time.strftime('%Y%m%d-%H%M%S')}"
        for seed in range(arguments.seeds):
            folders.append(f"{stem}-seed{seed}")
            began = time.perf_counter()
            if code := train.main([*command, f"seed={seed}", f"out={folders[-1]}"]):
                return code
            training = sum(row.seconds for row in folder.read_metrics(Path(folders[-1], "metrics.csv")))
            beside.append(time.perf_counter() - began - training)
    report([Path(run) for run in folders])
    if beside:
        print(
            f"beside the training, each run took {spread(beside)} s (loading, tests, checkpoints, pictures)"
        )
    return 0


def report(folders: Sequence[Path]) -> None:
    """Print when each goal was reached, and what the runs ended with."""
    for goal, reached in zip(GOALS, zip(*map(passed, folders))):
        if None in reached:
            print(f"{goal}%: reached by {len(reached) - reached.count(None)} of {len(reached)}")
        else:
            seconds, epochs = zip(*reached)
            n = len(reached)
            print(f"{goal}%: {spread(seconds)} seconds of training, {spread(epochs)} epochs (n = {n})")
    last = [folder.read_metrics(run / "metrics.csv")[-1].test_accuracy for run in folders]
    each = ", ".join(f"{value:.2f}" for value in last)
    print(f"last epoch's test accuracy {spread(last)}% (n = {len(last)}): {each}")


def passed(run: Path) -> list[tuple[float, int] | None]:
    """For each goal seconds and epochs of training when the test accuracy first reached it, if it did."""
    rows = folder.read_metrics(run / "metrics.csv")
    spent = itertools.accumulate(row.seconds for row in rows)
    seen = [(row.test_accuracy, (seconds, row.epoch)) for row, seconds in zip(rows, spent)]
    return [next((when for accuracy, when in seen if accuracy >= goal), None) for goal in GOALS]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation as text."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


if __name__ == "__main__":
    sys.exit(main())
