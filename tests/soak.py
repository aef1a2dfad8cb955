"""Kill a real run again and again, resume it each time, and compare it with a run that nobody touched.

python -m tests.soak --kills 30      # the last two of them under torchrun, with two ranks
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from harness import checkpoint

ROOT = Path(__file__).resolve().parent.parent
SIGNALS = ["SIGKILL", "SIGHUP", "SIGINT", "SIGTERM"]
CODES = {"SIGKILL": (-9,), "SIGTERM": (143, -15), "SIGINT": (130, -2), "SIGHUP": (129, -1)}
RANKS_SIGNALS = ["SIGTERM", "SIGHUP"]  # of SIGKILL torchrun could not tell its workers


def launch(*arguments, ranks=None):
    """Start train.py in a process of its own, under torchrun when `ranks` is given."""
    runner = (
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        if ranks
        else [sys.executable, "-u"]
    )
    return subprocess.Popen(
        [*runner, str(ROOT / "train.py"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def metrics(folder):
    """The rows of metrics.csv without the seconds, which no two runs share."""
    return [line.rsplit(",", 1)[0] for line in Path(folder, "metrics.csv").read_text().splitlines()]


def same_run(one, two):
    """Whether two run folders hold the same metrics, weights and momentum, bit for bit."""
    a, b = (checkpoint.load(Path(folder) / "last.pt") for folder in (one, two))
    momentum = [[state["momentum_buffer"] for state in saved["optimizer"].values()] for saved in (a, b)]
    return (
        metrics(one) == metrics(two)
        and a["weights"].keys() == b["weights"].keys()
        and len(momentum[0]) == len(momentum[1])
        and all(torch.equal(a["weights"][name], b["weights"][name]) for name in a["weights"])
        and all(map(torch.equal, *momentum))
    )


def soak(settings, folder, kills, chance, ranks=None, wait=0.4):
    """Run with `settings` undisturbed and under `kills` signals at random moments; `ranks` are torchrun's.

    The moment is up to `wait` seconds after a line that it prints; without, at the end of an epoch.
    Returns the kills by signal, the number of resumes, and whether both runs are equal.
    """
    whole, run = Path(folder, "whole"), Path(folder, "run")
    undisturbed = launch(*settings, f"out={whole}", ranks=ranks)
    sent, resumes = Counter(), 0
    while True:
        resumable = (run / "last.pt").exists()
        resumes += resumable
        if not resumable:  # killed between making the folder and the first checkpoint
            shutil.rmtree(run, ignore_errors=True)
        process = launch(*(["--resume", run] if resumable else [*settings, f"out={run}"]), ranks=ranks)
        if sum(sent.values()) == kills:
            break
        for line in process.stdout:
            if line.startswith("epoch") or (wait and "of fewer than" in line):  # it is about to train
                break
        time.sleep(chance.uniform(0, wait))
        signals = RANKS_SIGNALS if ranks else SIGNALS
        name = signals[sum(sent.values()) % len(signals)]
        process.send_signal(getattr(signal, name))
        _, error = process.communicate(timeout=60)
        if not ranks:  # torchrun has exit codes and tracebacks of its own
            assert process.returncode in CODES[name], error
            assert "Traceback" not in error, error
        sent[name] += 1
    for each in (process, undisturbed):
        out, error = each.communicate()
        assert "evaluate with" in out, error
    return dict(sent), resumes, same_run(whole, run)


def main():
    """Soak a run on small random pictures and print what happened."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    arguments = parser.parse_args()
    settings = ["dataset=synthetic", "device=cpu", "batch_size=200", "epochs=3", "dropout=0.1"]
    settings += ["checkpoint_minutes=0.01"]
    chance, code = random.Random(0), 0
    for ranks, kills in ((None, arguments.kills - 2), (2, 2)):
        with tempfile.TemporaryDirectory() as folder:
            sent, resumes, equal = soak(settings, folder, kills, chance, ranks)
        under = "torchrun with two ranks" if ranks else "python"
        print(f"{under}: kills {sent}, resumes {resumes}, differences {'none' if equal else 'FOUND'}")
        code = code or int(not equal)
    return code


if __name__ == "__main__":
    sys.exit(main())
