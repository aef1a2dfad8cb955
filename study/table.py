"""The table of the study, metrics.csv: a row for each epoch of each run; and the table of the page.

Beside it stands about.yaml: the settings and the data of all runs, and how fast each kind trains.
"""

import csv
import io
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import model
from harness.errors import UserError
from harness.folder import write_whole
from harness.metrics import Row

HERE = Path(__file__).resolve().parent
BASE = "dense"  # the kind that the others are compared with
EQUAL_EPOCHS, EQUAL_SECONDS, LEARNT_FILTERS = "equal epochs", "equal seconds", "learnt filters"


class Run(NamedTuple):
    """A training of the study, and what it is for."""

    network: str
    epochs: int
    seed: int
    purpose: str  # one of the three above


# What about.yaml must hold.
KINDS = {"data": str, "train_images": int, "epochs": int, "settings": dict, "images_per_second": dict}


class Study(NamedTuple):
    """What is recorded in a folder."""

    about: dict[str, Any]  # about.yaml
    runs: dict[Run, list[Row]]  # metrics.csv


def read(folder: Path) -> Study:
    """The study in a folder, perhaps without any run yet. UserError if there is none, or it is damaged."""
    path = folder / "about.yaml"
    try:
        about = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: holds no study, for about.yaml is not there") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        about = None
    whole = isinstance(about, dict)
    if not whole or any(not isinstance(about.get(name), kind) for name, kind in KINDS.items()):
        raise UserError(f"{path}: is damaged; bring back the file that the study wrote")
    return Study(about, read_runs(folder / "metrics.csv"))


def read_runs(path: Path) -> dict[Run, list[Row]]:
    """The rows of each run, none if there is no table. UserError if it is damaged."""
    runs: dict[Run, list[Row]] = {}
    if not path.exists():
        return runs
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for line in (lines := csv.DictReader(file)):
            try:
                run = Run(line["network"], int(line["epochs"]), int(line["seed"]), line["purpose"])
                row = Row(int(line["epoch"]), *(float(line[name]) for name in Row._fields[1:]))
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{path}, line {lines.line_num}: is no row of this table; mend it") from None
            runs.setdefault(run, []).append(row)
    return runs


def write_runs(path: Path, runs: dict[Run, list[Row]]) -> None:
    """Write the table anew."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Run._fields + Row._fields)
    for run, rows in runs.items():
        for row in rows:
            writer.writerow([*run, *(f"{value:.6g}" for value in row)])
    write_whole(path, text.getvalue().encode())


def kinds(study: Study) -> list[str]:
    """Those that have a run of equal epochs, in the order of model.STUDY."""
    return [kind for kind in model.STUDY if accuracies(study, kind)]


def accuracies(study: Study, kind: str) -> list[float]:
    """Test accuracy (percent) after the last of the equal epochs, one for each seed."""
    runs = study.runs.items()
    return [
        rows[-1].test_accuracy for run, rows in runs if (run.network, run.purpose) == (kind, EQUAL_EPOCHS)
    ]


def seconds(study: Study, kind: str) -> float | None:
    """What the training of the equal epochs takes at the speed measured; None if it was not measured."""
    rate = study.about["images_per_second"].get(kind)
    return study.about["epochs"] * study.about["train_images"] / rate if rate else None


def timed_run(about: dict[str, Any], kind: str) -> Run | None:
    """The run whose epochs come nearest to the seconds of the base; None if no speed was measured.

    Where that are the equal epochs, it is the run of those.
    """
    rates, epochs = about["images_per_second"], about["epochs"]
    if kind not in rates:
        return None
    nearest = max(1, round(epochs * rates[kind] / rates[BASE]))
    return Run(kind, nearest, 0, EQUAL_EPOCHS if nearest == epochs else EQUAL_SECONDS)


def timed_accuracy(study: Study, kind: str) -> float | None:
    """Test accuracy (percent) that a kind reaches in the seconds of the base; None if it was not trained."""
    rows = study.runs.get(timed_run(study.about, kind))
    return rows[-1].test_accuracy if rows else None


def markdown(study: Study) -> str:
    """The table of the page: a row for each kind."""
    heads = ["kind", "parameters", "multiply-adds", "receptive field", "moved", "images/s"]
    heads += [f"after {study.about['epochs']} epochs", f"in the seconds of `{BASE}`"]
    rows = [f"| {' | '.join(cells(study, kind))} |" for kind in kinds(study)]
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows])


def cells(study: Study, kind: str) -> list[str]:
    """The row of a kind: its size, what it costs and what it reaches."""
    network = model.build(kind)
    rate = study.about["images_per_second"].get(kind)
    timed = timed_accuracy(study, kind)
    return [
        f"`{kind}`",
        f"{model.count_parameters(network):,}",
        f"{model.multiply_adds(network) / 1e6:.1f} million",
        f"{model.receptive_field(network)} px",
        f"{bytes_moved(network) / 1e6:.2f} MB",
        f"{rate:,}" if rate else "",
        spread(accuracies(study, kind)),
        "" if timed is None else f"{timed:.2f}% ({timed_run(study.about, kind).epochs} epochs)",
    ]


def spread(values: list[float]) -> str:
    """Mean and standard deviation in percent, and how many they are of."""
    if len(values) == 1:
        return f"{values[0]:.2f}% (1 seed)"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}% ({len(values)} seeds)"


def bytes_moved(network: nn.Module) -> int:
    """Bytes that layers read and write for one image (3×32×32), forward, in bfloat16, without weights."""
    image = torch.zeros(1, 3, 32, 32)
    with Traffic() as traffic, torch.no_grad():
        network.eval()(image)
    return 2 * traffic.values


class Traffic(TorchDispatchMode):
    """Counts the values that operations read and write in tensors of one image, 1×C×H×W."""

    values = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Carry out the operation and count."""
        result = operation(*args, **(kwargs or {}))
        if not operation.is_view:
            for value in tree_leaves((args, result)):
                if isinstance(value, Tensor) and value.ndim == 4 and len(value) == 1:
                    self.values += math.prod(value.shape)
        return result
