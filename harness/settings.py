"""The command line and settings: flat `key: value` text in, one frozen, checked dataclass out.

Precedence: command line, then --config, then config.yaml beside train.py, the only place for defaults.
"""

import dataclasses
import datetime
import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import yaml

import model
from harness import checkpoint
from harness.errors import Parser, UserError

DEFAULTS = Path(__file__).resolve().parent.parent / "config.yaml"
SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
FIXED = ("network", "dataset", "batch_size", "average", "seed", "holdout", "out")  # what makes a run that run
FALLS = 5  # how often the learning rate falls in a run whose step_size is left empty


class Text(NamedTuple):
    """A value as written, and where: `config.yaml, line 3` or `command line`."""

    value: str
    where: str


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on. Beside each type stands what it allows: an interval or names."""

    network: Annotated[str, model.NETWORKS]  # the dictionary, for one may add to it
    dropout: Annotated[float, "[0, 1)"]
    whiten: Annotated[bool, tuple(SWITCH)]
    weights: Annotated[str, None]

    epochs: Annotated[int, "[1, inf)"]
    batch_size: Annotated[int, "[1, inf)"]
    lr: Annotated[float, "(0, inf)"]
    step_size: Annotated[int | None, "[1, inf)"]
    gamma: Annotated[float, "(0, 1]"]
    warmup_epochs: Annotated[float, "[0, inf)"]
    momentum: Annotated[float, "[0, 1)"]
    nesterov: Annotated[bool, tuple(SWITCH)]
    weight_decay: Annotated[float, "[0, inf)"]
    label_smoothing: Annotated[float, "[0, 1)"]
    average: Annotated[float, "[0, 1)"]

    dataset: Annotated[str, ("cifar10", "folder", "synthetic")]
    data_dir: Annotated[str, None]
    holdout: Annotated[int, "[0, inf)"]

    flip: Annotated[bool, tuple(SWITCH)]
    crop: Annotated[int, "[0, 16]"]
    rotate: Annotated[float, "[0, 180]"]
    colour: Annotated[float, "[0, 1]"]
    cutout: Annotated[int, "[0, 32]"]
    mixup: Annotated[float, "[0, 1]"]
    cutmix: Annotated[float, "[0, 1]"]
    small_epochs: Annotated[int | None, "[0, inf)"]
    small_size: Annotated[int, "[16, 32]"]
    leave_out: Annotated[float, "[0, 1)"]

    device: Annotated[str, ("auto", "cpu", "cuda", "mps")]
    precision: Annotated[str, ("auto", "float32", "bfloat16")]
    compile: Annotated[str, ("auto", "on", "off")]
    sync_batchnorm: Annotated[bool, tuple(SWITCH)]

    seed: Annotated[int, "[0, 4294967295]"]
    out: Annotated[str, None]
    checkpoint_minutes: Annotated[float, "(0, inf)"]
    tensorboard: Annotated[bool, tuple(SWITCH)]


FIELDS = {field.name: get_args(field.type) for field in dataclasses.fields(Settings)}


def parse(argv: list[str] | None, description: str) -> tuple[Settings, str]:
    """Settings and command (`run`, `resume` or `evaluate`). UserError where anything is wrong."""
    parser = Parser(description)
    parser.add_argument("settings", nargs="*", metavar="name=value", help="override a setting of config.yaml")
    parser.add_argument(
        "--config", metavar="FILE", help="a YAML file naming the settings that differ from config.yaml"
    )
    parser.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    parser.add_argument("--evaluate", metavar="RUN", help="print the test accuracy of the run in this folder")
    arguments = vars(parser.parse_intermixed_args(argv))
    pairs = arguments.pop("settings")
    options = {name: value for name, value in arguments.items() if value is not None}
    if len(options) > 1:
        raise UserError(f"--{' and --'.join(options)} do not go together; give one of them")
    for command in options.keys() - {"config"}:
        return of_run(Path(options[command]), pairs, command), command
    config = arguments["config"]
    settings = with_network_of_weights(read(pairs, config), "network" in given(pairs, config))
    return resolve(settings), "run"


def with_network_of_weights(settings: Settings, chosen: bool) -> Settings:
    """The settings with the network that the file `weights` holds. UserError if another one was chosen."""
    if not settings.weights:
        return settings
    path, network = settings.weights, checkpoint.load(Path(settings.weights))["network"]
    if chosen and settings.network != network:
        wrong = f"weights={path}: holds {network}, not {settings.network}"
        raise UserError(f"{wrong}; leave network= out, or give other weights")
    return dataclasses.replace(settings, network=convert("network", Text(network, path)))


def of_run(path: Path, pairs: list[str], command: str) -> Settings:
    """The settings of the run in folder `path`, with what may be changed of them by `key=value` pairs."""
    if not path.is_dir():
        raise UserError(f"{path}: there is no such run folder")
    kept = path / "config.yaml"
    before, settings = read(config=kept), read(pairs, kept)
    for name in FIXED:
        if getattr(settings, name) != getattr(before, name) and (name, command) != ("holdout", "evaluate"):
            kept_as = f"a run keeps its {name} ({getattr(before, name)})"
            raise UserError(f"{name}={getattr(settings, name)}: {kept_as}; start a new run for another")
    return dataclasses.replace(resolve(settings), out=str(path))


def resolve(settings: Settings) -> Settings:
    """The settings with what is left empty filled in."""
    step_size = settings.step_size or max(1, round(settings.epochs / FALLS))
    small_epochs = settings.epochs // 2 if settings.small_epochs is None else settings.small_epochs
    out = settings.out or f"runs/{settings.network}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    return dataclasses.replace(settings, step_size=step_size, small_epochs=small_epochs, out=out)


def left_out(settings: Settings, epoch: int) -> float:
    """The share of the training images that an epoch, counted from 0, leaves out."""
    return settings.leave_out if settings.epochs / FALLS <= epoch < settings.epochs - 2 else 0.0


def read(pairs: Iterable[str] = (), config: str | Path | None = None) -> Settings:
    """Settings from config.yaml, then `config`, then `key=value` pairs. UserError where anything is wrong."""
    texts = read_yaml(DEFAULTS) | given(pairs, config)
    if missing := FIELDS.keys() - texts.keys():
        raise UserError(
            f"{DEFAULTS}: {', '.join(sorted(missing))} not set; every setting needs its default there"
        )
    settings = Settings(**{name: convert(name, text) for name, text in texts.items()})
    if settings.nesterov and settings.momentum == 0:
        raise UserError("nesterov needs a momentum above 0: set nesterov=false or momentum=0.9")
    if settings.mixup + settings.cutmix > 1:
        raise UserError(
            f"mixup={settings.mixup} and cutmix={settings.cutmix}: are shares of the same images; "
            "their sum must not pass 1"
        )
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
        problem = getattr(error, "problem", None) or "not UTF-8 text"
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
        texts[key.value] = Text(value.value, where)
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
            raise UserError(f"{name}={value!r} ({where}): choose one of {', '.join(allowed)}")
        return SWITCH[value] if kind is bool else value
    try:
        number = kind(value)
    except ValueError:
        needs = "a whole number" if kind is int else "a number"
        raise UserError(f"{name}={value!r} ({where}): needs {needs}") from None
    if kind is str:
        if "\0" in value:
            raise UserError(f"{name} ({where}): a path cannot hold a NUL character")
    elif not inside(allowed, number):
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
