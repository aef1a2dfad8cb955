"""All that a GPU is to be asked, in one command that ends in time.

    python -m benchmarks.gpu --minutes 25 --out DIR dataset=folder data_dir=data/pictures

In this order, each part as long as its share of the minutes lasts: a short run that is resumed; images
per second of every network in float32 and bfloat16, eager and compiled; seconds to 85 and 90% of
`fast`, five seeds; `accurate` at full length, as many seeds as fit; the study of convolutions. What is
under way when the time is up is stopped and can be resumed. DIR gets two files, written anew after each
part: report.md, and runs.tar.gz with the run folders. Settings given as name=value hold for every
training. Without a GPU it runs on the CPU: try it there with epochs=1.
"""

import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for python benchmarks/gpu.py
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while torch loads ends without a traceback

import torch

import model
from benchmarks import convolutions, throughput, time_to_accuracy
from harness import devices, folder
from harness import settings as configuration
from harness.errors import Parser, one_line_errors
from train import Training

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "accurate.yaml"
SEEDS, MOST_SEEDS = 5, 20  # of `fast`, and at most of `accurate`
MEASURED = 2.0  # seconds a rate is measured for
KEPT = ["config.yaml", "metrics.csv", "curves.png", "best.pt", "last.pt"]


class Plan:
    """The time there is, the trainings started in it, and what is known so far."""

    def __init__(self, minutes: float, out: Path, runs: Path, pairs: list[str]) -> None:
        self.end, self.minutes = time.monotonic() + 60 * minutes, minutes
        self.out, self.runs, self.pairs = out, runs, pairs
        self.deadline, self.lines = self.end, [f"# {describe(pairs)}", ""]

    def part(self, title: str, share: float, steps: Iterator[str]) -> None:
        """Take lines for the report from `steps` until the share of the minutes is over, then write."""
        self.deadline = min(self.end, time.monotonic() + 60 * self.minutes * share)
        self.lines += [f"## {title}", ""]
        while time.monotonic() < self.deadline and (line := next(steps, None)) is not None:
            print(line, flush=True)
            self.lines.append(line)
        if time.monotonic() >= self.deadline:
            self.lines += ["", "The time for this part was over."]
        self.lines.append("")
        self.write()

    def train(self, name: str, *arguments: str) -> bool:
        """Train in a process of its own, in the run folder `name`; whether it came to its end in time."""
        settings = [*self.pairs, *arguments, f"out={self.runs / name}"]
        command = [sys.executable, str(ROOT / "train.py"), *settings]
        with open(self.runs / f"{name}.log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
            try:
                return process.wait(max(1, self.deadline - time.monotonic())) == 0
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
                return False

    def write(self) -> None:
        """The report, and an archive of what the runs left."""
        self.out.mkdir(parents=True, exist_ok=True)
        folder.write_whole(self.out / "report.md", "\n".join(self.lines).encode())
        with tarfile.open(self.out / "runs.tar.gz", "w:gz") as archive:
            for path in sorted(self.runs.rglob("*")):
                if path.name in KEPT or path.suffix == ".log":
                    archive.add(path, path.relative_to(self.runs))


def main(argv: list[str] | None = None) -> int:
    """Do the parts in order."""
    parser = Parser(__doc__)
    parser.add_argument("settings", nargs="*", metavar="name=value")
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    with one_line_errors() as outcome:
        arguments = parser.parse_intermixed_args(argv)
        describe(arguments.settings)  # a mistake is told before anything is made
        runs = Path("runs", f"gpu-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
        runs.mkdir(parents=True)
        plan = Plan(arguments.minutes, arguments.out, runs, arguments.settings)
        plan.part("A run, stopped and resumed", 0.1, smoke(plan))
        plan.part("Images per second", 0.2, rates(plan))
        plan.part("fast: seconds to 85 and 90%", 0.2, fast(plan))
        plan.part("accurate", 0.45, accurate(plan))
        plan.part("The study of convolutions", 1.0, study(plan))
        print(f"{arguments.out}: report.md, runs.tar.gz")
    return outcome.code


def describe(pairs: list[str]) -> str:
    """The device and the day."""
    device = devices.describe(devices.pick(configuration.read(pairs).device))
    return f"{device}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"


def smoke(plan: Plan) -> Iterator[str]:
    """One epoch, then a second one by --resume."""
    if not plan.train("smoke", "epochs=1"):
        yield "the first epoch FAILED, see smoke.log"
        return
    yield "first epoch: done"
    command = [sys.executable, str(ROOT / "train.py"), "--resume", str(plan.runs / "smoke"), "epochs=2"]
    second = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    yield f"resumed: {'done' if second.returncode == 0 else second.stderr.strip()}"
    rows = folder.read_metrics(plan.runs / "smoke" / "metrics.csv")
    yield f"test accuracy {', '.join(f'{row.test_accuracy:.2f}%' for row in rows)}"


def rates(plan: Plan) -> Iterator[str]:
    """Images per second of the training loop, a table."""
    yield "| network | precision | compile | images/s |"
    yield "|---|---|---|---|"
    dataset = throughput.random_images()
    ways = ["off", "on"] if torch.cuda.is_available() else ["off"]
    for compiled in ways:
        for name in model.NETWORKS:
            for precision in ("float32", "bfloat16"):
                asked = [*plan.pairs, f"network={name}", f"precision={precision}", f"compile={compiled}"]
                settings = configuration.resolve(configuration.read([*asked, "small_epochs=0"]))
                training = Training(settings, dataset, devices.pick(settings.device))
                rate = throughput.rate(throughput.real_loop(training), MEASURED)
                yield f"| `{name}` | {precision} | {compiled} | {rate:,.0f} |"


def fast(plan: Plan) -> Iterator[str]:
    """Seeds of the default settings, each with the seconds it took to the goals."""
    yield "| seed | last epoch | seconds | to 80% | to 85% | to 90% |"
    yield "|---|---|---|---|---|---|"
    for seed in range(SEEDS):
        if plan.train(f"fast-seed{seed}", f"seed={seed}"):
            yield result(plan.runs / f"fast-seed{seed}", seed)


def accurate(plan: Plan) -> Iterator[str]:
    """Seeds at full length, as long as another one fits."""
    yield "| seed | last epoch | seconds | to 80% | to 85% | to 90% |"
    yield "|---|---|---|---|---|---|"
    for seed in range(MOST_SEEDS):
        began = time.monotonic()
        done = plan.train(f"accurate-seed{seed}", "--config", str(RECIPE), f"seed={seed}")
        if not done:
            yield f"| {seed} | stopped: go on with `--resume` | | | | |"
            return
        yield result(plan.runs / f"accurate-seed{seed}", seed)
        if time.monotonic() + (time.monotonic() - began) > plan.deadline:
            return


def result(run: Path, seed: int) -> str:
    """A row of the tables of seeds."""
    rows = folder.read_metrics(run / "metrics.csv")
    goals = [f"{reached[0]:.1f}" if reached else "" for reached in time_to_accuracy.passed(run)]
    seconds = sum(row.seconds for row in rows)
    return f"| {seed} | {rows[-1].test_accuracy:.2f}% | {seconds:.1f} | {' | '.join(goals)} |"


def study(plan: Plan) -> Iterator[str]:
    """The kinds one after another, one seed."""
    yield "| network | last epoch | seconds |"
    yield "|---|---|---|"
    for name in model.STUDY:
        if plan.train(f"study-{name}", *convolutions.schedule(convolutions.EPOCHS), f"network={name}"):
            rows = folder.read_metrics(plan.runs / f"study-{name}" / "metrics.csv")
            yield f"| `{name}` | {rows[-1].test_accuracy:.2f}% | {sum(row.seconds for row in rows):.1f} |"


if __name__ == "__main__":
    sys.exit(main())
