"""What a GPU is to be asked, the most telling first, in one command that ends in time.

    python -m benchmarks.gpu --minutes 9 --out DIR dataset=folder data_dir=data/pictures

In this order: a run that is stopped and resumed; `fast` with three seeds as it is, and with compile=on, whole
commands timed; images per second of `fast` and `accurate`, eager and compiled; in the time that is left
`accurate`, for as many epochs as fit. DIR gets report.md, written anew after each part, and runs.tar.gz with
the run folders. The minutes begin when the data are loaded. Settings given as name=value hold for every
training. Without a GPU it runs on the CPU: try it there with epochs=2.
"""

import signal
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for python benchmarks/gpu.py
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while torch loads ends without a traceback

import torch

import data
import model
from benchmarks import throughput, time_to_accuracy
from harness import devices, folder
from harness import settings as configuration
from harness.errors import Parser, one_line_errors
from train import Training, load_data

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "accurate.yaml"
SEEDS = 3  # of `fast`
MEASURED = 3.0  # seconds that a rate is measured for
START = 30  # seconds that a training of `accurate` may take before its first step and after its last
FEWEST = 10  # epochs of `accurate` that are worth a run


class Plan:
    """The time there is, where the runs lie, and the report so far."""

    def __init__(self, minutes: float, out: Path, runs: Path, pairs: list[str], compiles: bool) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.out, self.runs, self.pairs = out, runs, pairs
        self.compiles = compiles  # whether torch.compile works here
        self.lines: list[str] = []
        self.failed = False  # whether a training ended with an error

    def left(self) -> float:
        """Seconds until the end."""
        return self.end - time.monotonic()

    def tell(self, line: str) -> None:
        """Print a line and put it into report.md."""
        print(line, flush=True)
        self.lines.append(line)
        self.out.mkdir(parents=True, exist_ok=True)
        folder.write_whole(self.out / "report.md", ("\n".join(self.lines) + "\n").encode())

    def start(self, name: str, *arguments: str) -> subprocess.Popen:
        """Start a training in a process of its own; what it prints goes to NAME.log."""
        with open(self.runs / f"{name}.log", "a", encoding="utf-8") as log:
            command = [sys.executable, str(ROOT / "train.py"), *arguments]
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def train(self, name: str, *arguments: str) -> bool:
        """Train in the run folder `name`; whether it came to its end in time."""
        process = self.start(name, *self.pairs, *arguments, f"out={self.runs / name}")
        return self.ended(process)

    def ended(self, process: subprocess.Popen) -> bool:
        """Wait for a training, stopping it when the time is over; whether it ended well."""
        try:
            done = process.wait(max(1.0, self.left())) == 0
            self.failed |= not done
            return done
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            return False


def main(argv: list[str] | None = None) -> int:
    """Ask everything in order. Exit code 1 if a training failed, 2 for a mistake in the settings or data."""
    parser = Parser(__doc__)
    parser.add_argument("settings", nargs="*", metavar="name=value")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    with one_line_errors(data.DataError, model.NetworkError) as outcome:
        arguments = parser.parse_intermixed_args(argv)
        settings = configuration.read(arguments.settings)
        device = devices.pick(settings.device)
        load_data(settings)  # so that mistakes are told first, and all trainings find the data decoded
        runs = Path("runs", f"gpu-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
        runs.mkdir(parents=True)
        reason = devices.cannot_compile(device)
        plan = Plan(arguments.minutes, arguments.out, runs, arguments.settings, compiles=not reason)
        plan.tell(f"# {devices.describe(device)}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
        if reason:
            plan.tell(f"\ntorch.compile does not work here ({reason})")
        rates: dict[str, float] = {}
        for part in (smoke, fast, partial(measure, rates), partial(accurate, rates)):
            if plan.left() > 0:
                part(plan)
                pack(plan)
        print(f"{arguments.out}: report.md, runs.tar.gz")
        outcome.code = int(plan.failed)
    return outcome.code


def smoke(plan: Plan) -> None:
    """A run that is stopped after its first epoch, and resumed."""
    plan.tell("\n## A run, stopped and resumed\n")
    run = plan.runs / "smoke"
    process = plan.start("smoke", *plan.pairs, "epochs=3", f"out={run}")
    while process.poll() is None and plan.left() > 0 and epochs(run) == 0:
        time.sleep(0.05)
    plan.failed |= process.poll() is not None and epochs(run) == 0  # it ended by itself
    process.send_signal(signal.SIGTERM if sys.platform == "win32" else signal.SIGINT)
    stopped = process.wait()
    plan.tell(f"stopped: exit code {stopped}, after {epochs(run)} epochs")
    done = plan.ended(plan.start("smoke", "--resume", str(run)))
    plan.tell(f"resumed: {'done' if done else 'FAILED, see smoke.log'}, {epochs(run)} epochs")


def epochs(run: Path) -> int:
    """How many epochs a run has done."""
    path = run / "metrics.csv"
    return len(folder.read_metrics(path)) if path.exists() else 0


def fast(plan: Plan) -> None:
    """Seeds of the default settings as they are, and one compiled."""
    plan.tell("\n## fast\n")
    plan.tell("| seed | compile | last epoch | seconds of training | to 85% | whole command |")
    plan.tell("|---|---|---|---|---|---|")
    trainings = [(seed, "off") for seed in range(SEEDS)]
    if plan.compiles:
        trainings.append((0, "on"))
    for seed, compiled in trainings:
        name, began = f"fast-seed{seed}-{compiled}", time.monotonic()
        if plan.train(name, f"seed={seed}", f"compile={compiled}"):
            whole = time.monotonic() - began
            plan.tell(f"| {seed} | {compiled} | {result(plan.runs / name)} | {whole:.1f} |")
        else:
            plan.tell(f"| {seed} | {compiled} | did not end: see {name}.log | | | |")


def measure(rates: dict[str, float], plan: Plan) -> None:
    """Images per second of the training loop; the rate without compile goes into `rates`."""
    plan.tell("\n## Images per second of the training loop\n")
    plan.tell("| network | compile | images/s |")
    plan.tell("|---|---|---|")
    dataset = throughput.random_images()
    for name in ("fast", "accurate"):
        for compiled in ("off", "on") if plan.compiles else ("off",):
            pairs = [*plan.pairs, f"network={name}", f"compile={compiled}", "small_epochs=0", "leave_out=0"]
            settings = configuration.read(pairs)
            training = Training(settings, dataset, devices.pick(settings.device))
            rate = throughput.rate(partial(throughput.loop, training), MEASURED)
            plan.tell(f"| `{name}` | {compiled} | {rate:,.0f} |")
            if compiled == "off":
                rates[name] = rate


def accurate(rates: dict[str, float], plan: Plan) -> None:
    """One run with its recipe, of as many epochs as fit into the time that is left."""
    plan.tell("\n## accurate\n")
    recipe = configuration.read((), RECIPE)
    per_epoch = 60_000 / rates["accurate"]  # CIFAR-10's images, the tests among them
    fit = min(recipe.epochs, int(0.9 * (plan.left() - START) / per_epoch))
    if fit < FEWEST:
        plan.tell(f"{plan.left():.0f} seconds are left, an epoch takes {per_epoch:.1f}: too few for a run")
        return
    schedule = [f"epochs={fit}", f"step_size={max(1, round(fit * recipe.step_size / recipe.epochs))}"]
    done = plan.train("accurate", "--config", str(RECIPE), *schedule)
    plan.tell("| epochs | last epoch | seconds of training | to 85% |")
    plan.tell("|---|---|---|---|")
    if done:
        plan.tell(f"| {fit} | {result(plan.runs / 'accurate')} |")
    else:
        plan.tell(
            f"| {epochs(plan.runs / 'accurate')} of {fit} | go on with --resume, see accurate.log | | |"
        )


def result(run: Path) -> str:
    """Cells of the tables: last accuracy, seconds of training, seconds to 85%."""
    rows = folder.read_metrics(run / "metrics.csv")
    reached = time_to_accuracy.passed(run)[time_to_accuracy.GOALS.index(85)]
    goal = f"{reached[0]:.1f}" if reached else ""
    return f"{rows[-1].test_accuracy:.2f}% | {sum(row.seconds for row in rows):.1f} | {goal}"


def pack(plan: Plan) -> None:
    """Put the run folders into runs.tar.gz."""
    with tarfile.open(plan.out / "runs.tar.gz", "w:gz") as archive:
        archive.add(plan.runs, "runs")


if __name__ == "__main__":
    sys.exit(main())
