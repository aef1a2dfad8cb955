"""Seconds and epochs of training until the test accuracy first passes 80, 85 and 90%, over several seeds.

    python -m benchmarks.time_to_accuracy dataset=folder data_dir=DIR            # the settings of config.yaml
    python -m benchmarks.time_to_accuracy --each "" "lr=0.5" "--config recipes/s8.yaml"
    python -m benchmarks.time_to_accuracy --each "" "../before/train.py"         # another version of train.py
    python -m benchmarks.time_to_accuracy --runs runs/NAME ...                   # of runs made before

Each text after --each is what one would write after `python train.py`; a train.py may come first. They take
turns, seed after seed, in processes of their own, so that a noisy machine hits all alike, and their seconds
are given as a ratio to those of the last of them. Settings before --each hold for all.

The seconds are those of training in metrics.csv. What the whole command took is told beside them.
"""

import itertools
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for python benchmarks/time_to_accuracy.py
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while torch loads ends without a traceback

from harness import folder
from harness.errors import Parser, UserError, one_line_errors

GOALS = (80, 85, 90)  # percent
TRAIN = Path(__file__).resolve().parent.parent / "train.py"
Reached = tuple[float, int] | None  # seconds and epochs of training, if the goal was reached


def main(argv: list[str] | None = None) -> int:
    """Train with each seed unless runs are given, then print what each configuration took."""
    parser = Parser(__doc__)
    parser.add_argument("settings", nargs="*", metavar="name=value")
    parser.add_argument("--each", nargs="+", default=[""], metavar="TEXT")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", nargs="+", metavar="RUN", type=Path)
    with one_line_errors() as outcome:
        arguments = parser.parse_intermixed_args(argv)
        if arguments.seeds < 1:
            raise UserError("--seeds must be at least 1")
        if arguments.runs:
            report(arguments.runs)
        else:
            outcome.code = take_turns(arguments.each, arguments.seeds, arguments.settings)
    return outcome.code


def take_turns(each: Sequence[str], seeds: int, pairs: Sequence[str]) -> int:
    """Train each configuration with each seed, then report and compare. Returns an exit code."""
    stem = f"runs/time-{time.strftime('%Y%m%d-%H%M%S')}"
    runs: list[list[Path]] = [[] for _ in each]
    whole: list[list[float]] = [[] for _ in each]
    for seed, (number, text) in itertools.product(range(seeds), enumerate(each)):
        runs[number].append(Path(f"{stem}-{number + 1}-seed{seed}"))
        command = [*command_of(text), *pairs, f"seed={seed}", f"out={runs[number][-1]}"]
        began = time.perf_counter()
        if code := subprocess.run(command).returncode:
            return code
        whole[number].append(time.perf_counter() - began)
    for text, folders, seconds in zip(each, runs, whole, strict=True):
        print(f"\n{text or 'config.yaml'}")
        report(folders)
        print(f"the whole command took {spread(seconds)} s")
    for text, folders in zip(each[:-1], runs):
        compare(text, folders, each[-1], runs[-1])
    return 0


def command_of(text: str) -> list[str]:
    """How to start what one would write after `python train.py`."""
    try:
        words = shlex.split(text, posix=os.name != "nt")
    except ValueError as error:
        raise UserError(f"--each {text!r}: {error}") from None
    script = words.pop(0) if words and words[0].endswith(".py") else str(TRAIN)
    return [sys.executable, script, *words]


def report(folders: Sequence[Path]) -> None:
    """Print when each goal was reached, and what the runs ended with."""
    for run in folders:
        if not folder.read_metrics(run / "metrics.csv"):
            raise UserError(f"{run}: has no whole epoch; leave it out, or go on with it")
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


def compare(text: str, folders: Sequence[Path], other: str, others: Sequence[Path]) -> None:
    """Print the seconds to each goal as a ratio to those of other runs, seed by seed."""
    for goal, ours, theirs in zip(GOALS, zip(*map(passed, folders)), zip(*map(passed, others))):
        if None not in ours and None not in theirs:
            ratios = [mine[0] / its[0] for mine, its in zip(ours, theirs, strict=True)]
            print(f"{goal}%: {text or 'config.yaml'} takes {spread(ratios)} of {other or 'config.yaml'}")


def passed(run: Path) -> list[Reached]:
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
