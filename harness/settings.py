"""The command line and settings: flat `key: value` text in, one frozen, checked dataclass out.

Precedence: command line, then --config, then config.yaml beside train.py, the only place for defaults.
"""

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import yaml

import data
import model
from harness import checkpoint, earlier
from harness.errors import Parser, UserError

DEFAULTS = Path(__file__).resolve().parent.parent / "config.yaml"
SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
# What makes a run that run.
FIXED = (
    "network",
    "whiten",
    "weights",
    "dataset",
    "batch_size",
    "average",
    "seed",
    "holdout",
    "out",
)
SEVERAL = "paths with commas between"
FALLS = 5  # how often the learning rate falls in a run whose step_size is left empty


class Text(NamedTuple):
    """A value as written, and where: `config.yaml, line 3` or `command line`."""

    value: str
    where: str


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on. Beside each type stands what it allows: an interval, names or SEVERAL."""

    network: Annotated[str, model.NETWORKS]  # the dictionary, for one may add to it
    dropout: Annotated[float, "[0, 1)"]
    whiten: Annotated[bool, tuple(SWITCH)]
    weights: Annotated[str, None]

    epochs: Annotated[int, "[1, 100000]"]
    batch_size: Annotated[int, "[1, inf)"]
    lr: Annotated[float, "(0, inf)"]
    step_size: Annotated[int | None, "[1, inf)"]
    gamma: Annotated[float, "(0, 1]"]
    warmup_epochs: Annotated[float, "[0, inf)"]
    momentum: Annotated[float, "[0, 1)"]
    nesterov: Annotated[bool, tuple(SWITCH)]
    weight_decay: Annotated[float, "[0, inf)"]
    label_smoothing: Annotated[float, "[0, 1)"]
    teachers: Annotated[str, SEVERAL]
    average: Annotated[float, "[0, 1)"]

    dataset: Annotated[str, tuple(data.SOURCES)]
    data_dir: Annotated[str, None]
    holdout: Annotated[int, "[0, inf)"]

    flip: Annotated[bool, tuple(SWITCH)]
    crop: Annotated[int, "[0, 16]"]
    autoaugment: Annotated[bool, tuple(SWITCH)]
    cutout: Annotated[int, "[0, 32]"]
    cutmix: Annotated[float, "[0, 1]"]
    small_epochs: Annotated[int | None, "[0, inf)"]
    small_size: Annotated[int, "[16, 32]"]
    leave_out: Annotated[float, "[0, 1)"]

    device: Annotated[str, ("auto", "cpu", "cuda")]
    precision: Annotated[str, ("auto", "float32", "bfloat16")]
    compile: Annotated[bool, tuple(SWITCH)]

    seed: Annotated[int, "[0, 4294967295]"]
    out: Annotated[str, None]
    checkpoint_minutes: Annotated[float, "(0, inf)"]
    tensorboard: Annotated[bool, tuple(SWITCH)]

    @property
    def fall_every(self) -> int:
        """Epochs between two falls of the learning rate: step_size, or a fifth of the epochs."""
        return self.step_size or max(1, round(self.epochs / FALLS))

    @property
    def epochs_on_small(self) -> int:
        """How many epochs, the first, train on small images: small_epochs, or half of all."""
        return self.epochs // 2 if self.small_epochs is None else self.small_epochs

    @property
    def teacher_files(self) -> list[Path]:
        """The files that `teachers` names."""
        return [Path(path) for path in self.teachers.split(",") if path]

    def left_out(self, epoch: int) -> float:
        """The share of the training images that an epoch, counted from 0, leaves out."""
        return data.left_out(self.leave_out, self.epochs, epoch)


FIELDS = {field.name: get_args(field.type) for field in dataclasses.fields(Settings)}


class Command(NamedTuple):
    """What the command line asks for."""

    name: str  # run, resume or evaluate
    settings: Settings
    run: Path | None  # the folder of the run to resume or evaluate


def parse(argv: list[str] | None, description: str) -> Command:
    """What the command line asks for. UserError where anything is wrong."""
    parser = Parser(description)
    parser.add_argument("settings", nargs="*", metavar="name=value", help="override a setting of config.yaml")
    options = parser.add_mutually_exclusive_group()
    options.add_argument(
        "--config", metavar="FILE", help="a YAML file naming the settings that differ from config.yaml"
    )
    options.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    options.add_argument(
        "--evaluate", metavar="RUN", help="print the test accuracy of the run in this folder"
    )
    arguments = parser.parse_intermixed_args(argv)
    pairs, config = arguments.settings, arguments.config
    if "" in (config, arguments.resume, arguments.evaluate):
        raise UserError("an option has an empty path; --help shows how to call it")
    if arguments.evaluate:
        run = Path(local_path("--evaluate ", arguments.evaluate))
        return Command("evaluate", of_run(run, pairs, resume=False), run)
    if arguments.resume:
        run = Path(local_path("--resume ", arguments.resume))
        settings = of_run(run, pairs)
        check_teachers(settings)
        return Command("resume", settings, run)
    if config:
        config = local_path("--config ", config)
    chosen = given(pairs, config)
    settings = build(read_yaml(DEFAULTS) | chosen)
    check_teachers(settings)
    return Command("run", with_network_of_weights(settings, "network" in chosen), None)


def local_path(name: str, text: str) -> str:
    """The path in a text, its ~ replaced by the home folder. UserError for an address or a NUL character."""
    if re.match(r"\w\w+://", text):  # C://pictures is a path
        raise UserError(f"{name}{text}: is an address; give the path of a file or folder on this machine")
    if "\0" in text:
        raise UserError(f"{name}: a path cannot hold a NUL character")
    return os.path.expanduser(text)


def with_network_of_weights(settings: Settings, chosen: bool) -> Settings:
    """The settings with the network that the file `weights` holds. UserError if another one was chosen."""
    if not settings.weights:
        return settings
    path = Path(settings.weights)
    network = checkpoint.load_for("weights", path)["network"]
    if chosen and settings.network != network:
        wrong = f"weights={path}: holds {network}, not {settings.network}"
        raise UserError(f"{wrong}; leave one of the two out, or give other weights")
    return dataclasses.replace(settings, network=convert("network", Text(network, str(path))))


def check_teachers(settings: Settings) -> None:
    """UserError where a file of `teachers` cannot be read. Said here, before the data take their time."""
    for path in settings.teacher_files:
        checkpoint.load_for("teachers", path)


def of_run(path: Path, pairs: Sequence[str] = (), resume: bool = True) -> Settings:
    """The settings of the run in folder `path`, changed by `key=value` pairs.

    UserError if they change what makes that run that run, or if it cannot go on as it was. Without `resume`
    it need not, and its network may be tested on other data.
    """
    if path.is_file():
        raise UserError(f"{path}: is a file; give the run folder, {path.parent}")
    if not path.is_dir():
        raise UserError(f"{path}: there is no such run folder")
    texts = of_begun_run(path)
    for name in [name for name in texts if name in earlier.RETIRED]:
        gone = texts.pop(name)
        if resume:
            raise UserError(
                f"{gone.where}: {name} is gone; go on with the version of this program that began it"
            )
    before, settings = build(texts), build(texts | read_pairs(pairs))
    free = () if resume else ("dataset", "holdout")
    for name in FIXED:
        if getattr(settings, name) != getattr(before, name) and name not in free:
            kept = f"a run keeps what it began with, {name}={getattr(before, name)}"
            raise UserError(f"{name}={getattr(settings, name)}: {kept}; start a new run for another")
    return settings


def of_begun_run(path: Path) -> dict[str, Text]:
    """What stands in the config.yaml of a run, in today's terms: an earlier version had other settings.

    Of those that are gone only what was in use is left.
    """
    config = path / "config.yaml"
    texts = read_yaml(config)
    for name, off in earlier.RETIRED.items():
        if name in texts and texts[name].value in off:
            del texts[name]
    for (name, value), today in earlier.RENAMED.items():
        if name in texts and texts[name].value == value:
            texts[name] = Text(today, texts[name].where)
    then = {name: Text(value, str(config)) for name, value in earlier.ADDED.items()}
    return read_yaml(DEFAULTS) | then | texts


def read(pairs: Iterable[str] = (), config: str | Path | None = None) -> Settings:
    """Settings from config.yaml, then `config`, then `key=value` pairs. UserError where anything is wrong."""
    return build(read_yaml(DEFAULTS) | given(pairs, config))


def build(texts: dict[str, Text]) -> Settings:
    """Settings from their texts, of the right types, checked one by one and together."""
    values = {name: convert(name, text) for name, text in texts.items()}
    if missing := FIELDS.keys() - values.keys():
        raise UserError(
            f"{DEFAULTS}: {', '.join(sorted(missing))} not set; every setting needs its default there"
        )
    settings = Settings(**values)
    if settings.nesterov and settings.momentum == 0:
        raise UserError("nesterov needs a momentum above 0: set nesterov=false or momentum=0.9")
    return settings


def given(pairs: Iterable[str], config: str | Path | None) -> dict[str, Text]:
    """What was set otherwise than in config.yaml."""
    return (read_yaml(config) if config else {}) | read_pairs(pairs)


def read_pairs(pairs: Iterable[str]) -> dict[str, Text]:
    """`["lr=0.1"]` to `{"lr": Text("0.1", "command line")}`; nothing is checked yet."""
    texts = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"{pair!r} on the command line: write settings as name=value")
        texts[name.strip()] = Text(value.strip(), "command line")
    return texts


def read_yaml(path: str | Path) -> dict[str, Text]:
    """The flat mapping in a YAML file; every scalar stays text, so that 1e-3 and no mean what they say."""
    try:
        with open(path, encoding="utf-8") as file:
            root = yaml.compose(file, Loader=yaml.BaseLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", "not UTF-8 text")
        raise UserError(f"{path}{line}: not valid YAML ({problem})") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; settings are flat `name: value` lines") from None
    if root is None:
        raise UserError(f"{path}: is empty; write `name: value` lines, or leave the file out")
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}, line {root.start_mark.line + 1}: expected `name: value` lines")
    texts: dict[str, Text] = {}
    for key, value in root.value:
        where = f"{path}, line {key.start_mark.line + 1}"
        if not (isinstance(key, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode)):
            raise UserError(f"{where}: expected `name: value` with a single value")
        if key.value in texts:
            raise UserError(f"{where}: {key.value} is set twice")
        null = value.style is None and value.value.lower() in ("null", "~")  # YAML's words for nothing
        texts[key.value] = Text("" if null else value.value, where)
    return texts


def convert(name: str, text: Text) -> Any:
    """The value of setting `name` from its text, of the declared type and within what it allows."""
    value, where = text
    if name not in FIELDS:
        near = difflib.get_close_matches(name, FIELDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FIELDS)}"
        raise UserError(f"unknown setting {name!r} ({where}): {hint}")
    kind, allowed = FIELDS[name]
    if kind == int | None:
        if value in ("", "null", "~"):
            return None
        kind = int
    if isinstance(allowed, tuple | dict):
        value = value.lower() if kind is bool else value
        if value not in allowed:
            own = "; a network of your own is known to the script that adds it" if name == "network" else ""
            raise UserError(f"{name}={value!r} ({where}): choose one of {', '.join(allowed)}{own}")
        return SWITCH[value] if kind is bool else value
    if allowed == SEVERAL:
        return ",".join(local_path(f"{name}=", path.strip()) for path in value.split(",") if path.strip())
    if kind is str:
        return local_path(f"{name}=", value)
    try:
        number = kind(value)
    except ValueError:
        needs = "a whole number" if kind is int else "a number"
        raise UserError(f"{name}={value!r} ({where}): needs {needs}") from None
    if not inside(allowed, number):
        raise UserError(f"{name}={value} ({where}): must lie in {allowed}")
    return number


def inside(interval: str, number: float) -> bool:
    """Whether `number` lies in an interval written `[low, high)`; NaN lies in none."""
    low, high = map(float, interval[1:-1].split(","))
    above = number >= low if interval[0] == "[" else number > low
    return above and (number <= high if interval[-1] == "]" else number < high) and not math.isnan(number)


def dump(settings: Settings) -> str:
    """The settings as YAML text that `read` takes back unchanged."""
    return yaml.safe_dump(dataclasses.asdict(settings), sort_keys=False, allow_unicode=True)
