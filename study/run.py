"""What different convolutions do at equal size: train the networks of model.STUDY alike, and tabulate them.

    python -m study.run --page                                         # the table of the page, no training
    python -m study.run --out runs/mine dataset=folder data_dir=DIR    # the whole study, anew
    python -m study.run --out runs/few --only dense,separable --epochs 12 --seeds 1

Each kind trains for the epochs with each seed, and once for as many epochs as come nearest to the seconds
that `dense` takes. Called again, it goes on where it was stopped. --out gets metrics.csv, a row for each
epoch of the runs that came to their end; about.yaml, what all runs have in common; accuracy.png; and the
run folders. A new study has the settings of study/about.yaml but for those given as name=value.
"""

import io
import signal
import statistics
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for python study/run.py
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while torch loads ends without a traceback

import torch
import yaml

import data
import model
import train
from harness import devices, pictures
from harness import settings as configuration
from harness.errors import Parser, UserError, one_line_errors
from harness.folder import read_metrics, write_whole
from study import draw, table
from study.table import BASE, EQUAL_EPOCHS, LEARNT_FILTERS, Run

EPOCHS, SEEDS = 20, 3
ROUNDS = 3  # in which the kinds take turns to show their speed
OWN = ("network", "epochs", "gamma", "seed", "out")  # settings that each run gets from the study


def main(argv: list[str] | None = None) -> int:
    """Train what is missing, then print the table. Returns 0, or the code of a training that did not end."""
    parser = Parser(__doc__)
    parser.add_argument("settings", nargs="*", metavar="name=value")
    parser.add_argument("--only", default=",".join(model.STUDY), metavar="KINDS")
    parser.add_argument("--epochs", type=int, help=f"{EPOCHS} in a new study")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("--page", action="store_true", help="print the table of what is there, no more")
    with one_line_errors(data.DataError) as outcome:
        arguments = parser.parse_intermixed_args(argv)
        kinds, out = arguments.only.split(","), arguments.out or table.HERE
        if unknown := [kind for kind in kinds if kind not in model.STUDY]:
            raise UserError(f"--only {unknown[0]}: choose from {', '.join(model.STUDY)}")
        if arguments.seeds < 1 or arguments.epochs is not None and arguments.epochs < 1:
            raise UserError("--epochs and --seeds must be at least 1")
        if not arguments.out and not arguments.page:
            raise UserError(
                "name a folder for the study with --out, or print the table of the page with --page"
            )
        if not arguments.page:
            pairs = common_settings(out, arguments.settings)
            begin(out, pairs, arguments.epochs)
            if code := measure_speeds(out, kinds, pairs) or train_missing(out, kinds, arguments.seeds, pairs):
                return code
        print(table.markdown(table.read(out)))
    return outcome.code


def common_settings(out: Path, given: list[str]) -> list[str]:
    """What all runs get, as name=value: what about.yaml says, then what was given. UserError for the rest."""
    for pair in given:
        if pair.split("=")[0] in OWN:
            raise UserError(f"{pair}: the study sets that itself; see --only, --epochs, --seeds and --out")
    about = table.read(out if (out / "about.yaml").exists() else table.HERE).about
    return [*(f"{name}={value}" for name, value in about["settings"].items()), *given]


def begin(out: Path, pairs: list[str], epochs: int | None) -> None:
    """Write about.yaml, or see that it agrees with what is asked: runs that differ are not to be compared."""
    settings = configuration.read(pairs)
    path = out / "about.yaml"
    if path.exists():
        about = table.read(out).about
        agree("epochs", epochs or about["epochs"], about["epochs"], out)
        for name, value in about["settings"].items():
            agree(name, getattr(settings, name), value, out)
        return
    source, train_images = describe_data(pairs)
    about = {"data": source, "train_images": train_images, "epochs": epochs or EPOCHS}
    about["settings"] = {name: getattr(settings, name) for name in table.read(table.HERE).about["settings"]}
    about |= {"machine": describe_machine(pairs), "torch": str(torch.__version__)}
    about |= {"date": time.strftime("%Y-%m-%d"), "images_per_second": {}}
    out.mkdir(parents=True, exist_ok=True)
    write_about(out, about)


def agree(name: str, asked: Any, recorded: Any, out: Path) -> None:
    """UserError if what is asked is not what the runs have that are there."""
    if asked != recorded:
        raise UserError(f"{name} {asked}: the runs in {out} have {recorded}; choose another --out")


def describe_data(pairs: list[str]) -> tuple[str, int]:
    """What the images are, and how many there are to train on."""
    settings = configuration.read(pairs)
    info, *_ = data.load(settings.dataset, settings.data_dir, settings.holdout, settings.seed)
    return info.source, info.train_images


def describe_machine(pairs: list[str]) -> str:
    """The device and the precision."""
    settings = configuration.read(pairs)
    device = devices.pick(settings.device)
    precision = "bfloat16" if devices.bfloat16(device, settings.precision) else "float32"
    return f"{devices.describe(device)}, {precision}"


def write_about(out: Path, about: dict[str, Any]) -> None:
    """Write about.yaml."""
    text = yaml.safe_dump(about, sort_keys=False, allow_unicode=True)
    write_whole(out / "about.yaml", text.encode())


def measure_speeds(out: Path, kinds: list[str], pairs: list[str]) -> int:
    """Add to about.yaml how many images per second each kind trains. Returns an exit code.

    The median of single epochs, for which the kinds take turns, so that a noisy machine hits all alike. On
    another machine than the study was begun on nothing is measured: the speeds could not be compared.
    """
    about = table.read(out).about
    rates = about["images_per_second"]
    unknown = [kind for kind in model.STUDY if kind in [BASE, *kinds] and kind not in rates]
    if not unknown or describe_machine(pairs) != about["machine"]:
        return 0
    print(f"measuring the speed of {', '.join(unknown)}: {ROUNDS} epochs each", flush=True)
    seconds: dict[str, list[float]] = {kind: [] for kind in unknown}
    for number in range(ROUNDS):
        for kind in unknown:
            folder = out / f"speed-{kind}-{number}"
            if code := train_in(folder, 1, [*pairs, f"network={kind}", "epochs=1"]):
                return code
            seconds[kind].append(read_metrics(folder / "metrics.csv")[0].seconds)
    for kind in unknown:
        rates[kind] = round(about["train_images"] / statistics.median(seconds[kind]))
    write_about(out, about)
    return 0


def train_missing(out: Path, kinds: list[str], seeds: int, pairs: list[str]) -> int:
    """Train the runs that the table lacks, add each to it, draw the plot. Returns an exit code."""
    study = table.read(out)
    missing = [run for run in planned(study.about, kinds, seeds) if run not in study.runs]
    if not missing:
        return 0
    source, train_images = describe_data(pairs)
    agree("data", source, study.about["data"], out)
    agree("training images", train_images, study.about["train_images"], out)
    for number, run in enumerate(missing, 1):
        folder = out / run_name(run)
        if code := train_in(folder, run.epochs, [*pairs, *own_settings(run)]):
            return code
        rows = read_metrics(folder / "metrics.csv")
        runs = table.read(out).runs  # anew, for another process may have added to it
        table.write_runs(out / "metrics.csv", runs | {run: rows})
        print(f"{number} of {len(missing)}: {folder.name} {rows[-1].test_accuracy:.2f}%", flush=True)
    with pictures.defaults():
        draw.save(draw.accuracy(table.read(out)), out / "accuracy.png")
    return 0


def planned(about: dict[str, Any], kinds: list[str], seeds: int) -> list[Run]:
    """Every run of the study, all kinds with one seed before any with the next."""
    epochs = about["epochs"]
    runs = [Run(kind, epochs, seed, EQUAL_EPOCHS) for seed in range(seeds) for kind in kinds]
    timed = [table.timed_run(about, kind) for kind in kinds]
    runs += [run for run in timed if run and run not in runs]
    return [*runs, Run(BASE, epochs, 0, LEARNT_FILTERS)] if BASE in kinds else runs


def own_settings(run: Run) -> list[str]:
    """What one run has besides the common settings; whatever its length, the rate falls to a fiftieth."""
    gamma = f"gamma={0.02 ** (1 / run.epochs):.4f}"
    pairs = [f"network={run.network}", f"epochs={run.epochs}", gamma, f"seed={run.seed}"]
    return [*pairs, "whiten=false"] if run.purpose == LEARNT_FILTERS else pairs


def run_name(run: Run) -> str:
    """The name of its run folder."""
    name = f"{run.network}-{run.epochs}-seed{run.seed}"
    return f"{name}-learnt" if run.purpose == LEARNT_FILTERS else name


def train_in(folder: Path, epochs: int, pairs: list[str]) -> int:
    """Train in a run folder, or go on there, unless so many epochs are done. Returns an exit code."""
    if (folder / "metrics.csv").exists() and len(read_metrics(folder / "metrics.csv")) == epochs:
        return 0
    begun = (folder / "last.pt").exists()
    with redirect_stdout(io.StringIO()):
        code = train.main(["--resume", str(folder)] if begun else [*pairs, f"out={folder}"])
    if code > 128:
        print("the same command goes on with the study", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
