"""What kinds of convolution do at equal size: the networks of model.STUDY, trained alike over several seeds.

    python -m benchmarks.convolutions dataset=folder data_dir=data/pictures
    python -m benchmarks.convolutions --only dense,separable --epochs 12 --seeds 1
    python -m benchmarks.convolutions --table                  # of results/convolutions, trains nothing
    python -m benchmarks.convolutions --page                   # writes that into docs/convolutions.md

First the speed of all is measured, in turns. Each network trains for the epochs with each seed. Then it
trains once more for as many epochs as come nearest to the seconds that `dense` takes. The learning rate
falls a little after every epoch, to about a fiftieth. Images are of full size throughout. Called again with
the same --out, it goes on where it was stopped. Leaves there the run folders, about.yaml and two plots.
"""

import math
import re
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import TextIOBase
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

import data
import model
import train
from benchmarks import throughput
from harness import devices, folder, pictures
from harness import settings as configuration
from harness.errors import Parser, UserError, one_line_errors
from harness.metrics import Row

ROOT = Path(__file__).resolve().parent.parent
RECORDED, PAGE = ROOT / "results" / "convolutions", ROOT / "docs" / "convolutions.md"
BASE, EPOCHS, SEEDS = "dense", 20, 3
MEASURED = 4.0  # seconds of training of each network and round, to know its speed
HEADS = ["kind", "parameters", "multiply-adds", "receptive field", "moved", "images/s", "test accuracy"]


def main(argv: list[str] | None = None) -> int:
    """Train what is missing, then tabulate and draw; or only tabulate what is recorded."""
    parser = Parser(__doc__)
    parser.add_argument("settings", nargs="*", metavar="name=value")
    parser.add_argument("--only", default=",".join(model.STUDY), metavar="KINDS")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=Path("runs/convolutions"))
    parser.add_argument("--table", action="store_true", help="print what is recorded, and train nothing")
    parser.add_argument("--page", action="store_true", help="write that into the page, and draw its plots")
    with one_line_errors(data.DataError) as outcome:
        arguments = parser.parse_intermixed_args(argv)
        kinds = arguments.only.split(",")
        if unknown := [name for name in kinds if name not in model.STUDY]:
            raise UserError(f"--only {unknown[0]}: choose from {', '.join(model.STUDY)}")
        if min(arguments.epochs, arguments.seeds) < 1:
            raise UserError("--epochs and --seeds must be at least 1")
        if arguments.table or arguments.page:
            study = Study(RECORDED)
        else:
            note_circumstances(arguments.out, arguments.settings, arguments.epochs)
            if code := train_all(arguments.out, kinds, arguments.seeds, arguments.settings):
                return code
            study = Study(arguments.out)
        if arguments.page:
            write_page(study)
        if not arguments.table:
            study.draw()
        print(study.table())
    return outcome.code


def note_circumstances(out: Path, pairs: Sequence[str], epochs: int) -> None:
    """Write about.yaml, or see that it agrees: runs of other lengths or data are not to be compared."""
    settings = configuration.read(pairs)
    dataset = data.load(settings.dataset, settings.data_dir, settings.holdout, settings.seed)
    about = dataset.about
    now = {"data": about.source, "train_images": about.train_images, "epochs": epochs}
    path = out / "about.yaml"
    if path.exists():
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, value in now.items():
            if before[name] != value:
                raise UserError(f"{path}: made with {name} {before[name]}, not {value}; use another --out")
        return
    device = devices.describe(devices.pick(settings.device))
    now |= {"machine": device, "torch": str(torch.__version__), "date": time.strftime("%Y-%m-%d")}
    now["images_per_second"] = speeds(dataset, pairs)
    out.mkdir(parents=True, exist_ok=True)
    folder.write_whole(path, yaml.safe_dump(now, sort_keys=False).encode())


def speeds(dataset: data.Dataset, pairs: Sequence[str]) -> dict[str, int]:
    """Images per second that each kind trains, median of rounds in which they take turns."""
    seconds = len(model.STUDY) * throughput.ROUNDS * MEASURED
    print(f"measuring the speed of all kinds for {seconds / 60:.0f} minutes, then training", file=sys.stderr)
    asked = [configuration.read([*schedule(EPOCHS), *pairs, f"network={name}"]) for name in model.STUDY]
    trainings = [
        train.Training(settings, dataset, devices.pick(settings.device))
        for settings in map(configuration.resolve, asked)
    ]
    rates = throughput.medians([partial(throughput.real_loop, training) for training in trainings], MEASURED)
    return dict(zip(model.STUDY, map(round, rates), strict=True))


def schedule(epochs: int) -> list[str]:
    """Settings of a run of that length."""
    falls = ["step_size=1", f"gamma={0.02 ** (1 / epochs):.4f}"]
    return [f"epochs={epochs}", *falls, "small_epochs=0", "leave_out=0", "crop=4"]


def train_all(out: Path, kinds: Sequence[str], seeds: int, pairs: Sequence[str]) -> int:
    """Train what is missing, all kinds with one seed before any with the next. Returns an exit code."""
    study = Study(out)
    length = study.about["epochs"]
    planned = [(name, length, seed) for seed in range(seeds) for name in kinds]
    most = length * len(kinds) * (seeds + 1)  # a run in the seconds of the base is seldom longer
    with tqdm(total=most, unit=" epochs") as bar:
        for name, epochs, seed in planned:
            if code := train_one(study, name, epochs, seed, pairs, bar):
                return code
        for name in kinds:
            if code := train_one(study, name, study.timed_epochs(name), 0, pairs, bar):
                return code
        bar.total = bar.n
    return 0


def train_one(study: "Study", name: str, epochs: int, seed: int, pairs: Sequence[str], bar: tqdm) -> int:
    """Train or go on with one run, its epochs counted by the bar. Returns an exit code."""
    run = study.run(name, epochs, seed)
    bar.set_description(run.name)
    done = len(study.rows(name, epochs, seed))
    bar.update(done)
    if done == epochs:
        return 0
    new = [*schedule(epochs), *pairs, f"network={name}", f"seed={seed}", f"out={run}"]
    with redirect_stdout(Epochs(bar)):
        return train.main(["--resume", str(run)] if (run / "last.pt").exists() else new)


class Epochs(TextIOBase):
    """Takes the place of stdout in a training: the line of an epoch moves the bar, the rest is left out."""

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar

    def write(self, text: str) -> int:
        """Count the line if it is one of an epoch."""
        if text.startswith("epoch "):
            self.bar.update()
        return len(text)


class Study:
    """What is recorded below a folder: about.yaml, and runs named KIND-EPOCHS-seedSEED.

    UserError if nothing is.
    """

    def __init__(self, root: Path) -> None:
        if not (root / "about.yaml").exists():
            raise UserError(f"{root}: no study is recorded there")
        self.root = root
        self.about: dict[str, Any] = yaml.safe_load((root / "about.yaml").read_text(encoding="utf-8"))

    def run(self, name: str, epochs: int, seed: int) -> Path:
        """The folder of a run, there or not."""
        return self.root / f"{name}-{epochs}-seed{seed}"

    def rows(self, name: str, epochs: int, seed: int) -> list[Row]:
        """The metrics of a run, none if there are none."""
        path = self.run(name, epochs, seed) / "metrics.csv"
        return folder.read_metrics(path) if path.exists() else []

    def ended(self, name: str) -> list[list[Row]]:
        """The metrics of a kind's runs of full length, one for each seed that came to its end."""
        epochs = self.about["epochs"]
        seeds = range(len(list(self.root.glob(f"{name}-{epochs}-seed*"))))
        return [rows for seed in seeds if len(rows := self.rows(name, epochs, seed)) == epochs]

    def rate(self, name: str) -> int:
        """Images per second, measured in turns with the other kinds'."""
        return self.about["images_per_second"][name]

    def seconds(self, name: str) -> float:
        """Of training of a run of full length, at that rate."""
        return self.about["epochs"] * self.about["train_images"] / self.rate(name)

    def timed_epochs(self, name: str) -> int:
        """How many epochs of a kind come nearest to the seconds of the base, at least one."""
        return max(1, round(self.about["epochs"] * self.rate(name) / self.rate(BASE)))

    def scores(self, name: str) -> list[float]:
        """Test accuracy (percent) after the last epoch, one for each seed."""
        return [rows[-1].test_accuracy for rows in self.ended(name)]

    def kinds(self) -> list[str]:
        """Those of which a run has ended, in the order of model.STUDY."""
        return [name for name in model.STUDY if self.ended(name)]

    def table(self) -> str:
        """A row for each kind, in Markdown."""
        lines = [f"| {' | '.join([*HEADS, f'in the seconds of {BASE}'])} |", "|---" * 8 + "|"]
        return "\n".join([*lines, *map(self.line, self.kinds())])

    def timed(self, name: str) -> str:
        """What it reaches in the seconds of the base; nothing if that was not trained."""
        epochs = self.timed_epochs(name)
        rows = self.rows(name, epochs, 0)
        return f"{rows[-1].test_accuracy:.2f}% ({epochs} epochs)" if len(rows) == epochs else ""

    def line(self, name: str) -> str:
        """The row of one kind."""
        network = model.build(name)
        cells = [
            f"`{name}`",
            f"{model.count_parameters(network):,}",
            f"{model.multiply_adds(network) / 1e6:.1f} million",
            f"{model.receptive_field(network)} px",
            f"{moved(network) / 1e6:.2f} MB",
            f"{self.rate(name):,}",
            spread(self.scores(name)),
            self.timed(name),
        ]
        return f"| {' | '.join(cells)} |"

    def sentence(self, name: str) -> str:
        """What was measured of one kind, for its section of the page."""
        whole = f"`{name}` ends at {spread(self.scores(name))} and trains {self.rate(name):,} images/s."
        timed = self.timed(name) if name != BASE else ""
        return f"{whole}\nIn the seconds of `{BASE}` it reaches {timed}." if timed else whole

    def draw(self) -> None:
        """Plot accuracy over multiply-adds and over seconds of training, a point a kind."""
        names = self.kinds()
        work = [model.multiply_adds(model.build(name)) / 1e6 for name in names]
        seconds = [self.seconds(name) for name in names]
        scores = [self.scores(name) for name in names]
        title = f"{self.about['epochs']} epochs, {self.about['data']}"
        for name, places, along in (
            ("multiply_adds", work, "million multiply-adds an image"),
            ("seconds", seconds, "seconds of training"),
        ):
            figure = pictures.labelled(names, places, scores, along, title)
            folder.write_picture(self.root / f"{name}.png", figure)


def write_page(study: Study) -> None:
    """Replace what docs/convolutions.md says was measured: the row and the sentence of each kind."""
    text = PAGE.read_text(encoding="utf-8")
    for name in study.kinds():
        text = re.sub(rf"^\| `{name}` \|.*$", study.line(name), text, flags=re.MULTILINE)
        sentence = rf"^`{name}` ends at .*$(\nIn the seconds of .*$)?"
        text = re.sub(sentence, study.sentence(name), text, flags=re.MULTILINE)
    folder.write_whole(PAGE, text.encode())


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation in percent, and how many they are of."""
    if len(values) == 1:
        return f"{values[0]:.2f}% (1 seed)"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}% ({len(values)} seeds)"


def moved(network: nn.Module) -> int:
    """Bytes that the layers read and write for one 3×32×32 image, forward, in bfloat16, without weights."""
    image = torch.zeros(1, 3, 32, 32)
    with Moved() as counter, torch.no_grad():
        network.eval()(image)
    return 2 * counter.values


class Moved(TorchDispatchMode):
    """Counts the values of all tensors that operations read and write, but for weights and statistics."""

    values = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Carry out and count."""
        result = operation(*args, **(kwargs or {}))
        if not operation.is_view:
            self.values += sum(math.prod(tensor.shape) for tensor in images(tree_leaves((args, result))))
        return result


def images(values: Iterable[Any]) -> list[Tensor]:
    """Those of the values that are a batch of one image, 1×C×H×W; weights are of more outputs than one."""
    return [value for value in values if isinstance(value, Tensor) and value.ndim == 4 and len(value) == 1]


if __name__ == "__main__":
    sys.exit(main())
