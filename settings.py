"""Settings: flat `key: value` text in, one frozen, checked dataclass out.

Precedence: command line, then --config, then config.yaml beside this file, the only place where a default is written.
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple, get_args

import yaml

import model

DEFAULTS = Path(__file__).resolve().with_name("config.yaml")
SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class SettingsError(Exception):
    """A setting or a settings file the user has to mend; the message is one line that says how."""


class Text(NamedTuple):
    """A value as written, and where: `config.yaml, line 3` or `command line`."""
    value: str
    where: str


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on. Beside each type stands what it allows: an interval or a tuple of names."""
    network: Annotated[str, tuple(model.NETWORKS)]
    dropout: Annotated[float, "[0, 1)"]
    whiten: Annotated[bool, tuple(SWITCH)]
    epochs: Annotated[int, "[1, inf)"]
    batch_size: Annotated[int, "[1, inf)"]
    lr: Annotated[float, "(0, inf)"]
    momentum: Annotated[float, "[0, 1)"]
    nesterov: Annotated[bool, tuple(SWITCH)]
    weight_decay: Annotated[float, "[0, inf)"]
    step_size: Annotated[int | None, "[1, inf)"]
    gamma: Annotated[float, "(0, 1]"]
    warmup_epochs: Annotated[float, "[0, inf)"]
    label_smoothing: Annotated[float, "[0, 1)"]
    average: Annotated[float, "[0, 1)"]
    dataset: Annotated[str, ("cifar10", "folder", "synthetic")]
    data_dir: Annotated[str, None]
    flip: Annotated[bool, tuple(SWITCH)]
    crop: Annotated[int, "[0, 16]"]
    rotate: Annotated[float, "[0, 180]"]
    colour: Annotated[float, "[0, 1]"]
    cutout: Annotated[int, "[0, 32]"]
    mixup: Annotated[float, "[0, 1]"]
    cutmix: Annotated[float, "[0, 1]"]
    plain_epochs: Annotated[int, "[0, inf)"]
    small_epochs: Annotated[int | None, "[0, inf)"]
    small_size: Annotated[int, "[16, 32]"]
    device: Annotated[str, ("auto", "cpu", "cuda", "mps")]
    precision: Annotated[str, ("auto", "float32", "bfloat16")]
    compile: Annotated[str, ("auto", "on", "off")]
    sync_batchnorm: Annotated[bool, tuple(SWITCH)]
    seed: Annotated[int, "[0, 4294967295]"]
    checkpoint_minutes: Annotated[float, "(0, inf)"]
    tensorboard: Annotated[bool, tuple(SWITCH)]
    out: Annotated[str, None]


FIELDS = {field.name: get_args(field.type) for field in dataclasses.fields(Settings)}


def read(pairs=(), config=None):
    """Settings from config.yaml, then the file `config`, then `key=value` pairs; SettingsError where anything is wrong."""
    texts = read_yaml(DEFAULTS) | (read_yaml(config) if config else {}) | read_pairs(pairs)
    if missing := FIELDS.keys() - texts.keys():
        raise SettingsError(f"{DEFAULTS}: {', '.join(sorted(missing))} not set; every setting needs its default there")
    settings = Settings(**{name: convert(name, text) for name, text in texts.items()})
    if settings.nesterov and settings.momentum == 0:
        raise SettingsError("nesterov needs a momentum above 0: set nesterov=false or momentum=0.9")
    if settings.mixup + settings.cutmix > 1:
        raise SettingsError(f"mixup={settings.mixup} and cutmix={settings.cutmix}: are shares of the same images; their sum must not pass 1")
    return settings


def read_pairs(pairs):
    """`["lr=0.1"]` to `{"lr": Text("0.1", "command line")}`; names are checked, values not yet."""
    texts = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SettingsError(f"{pair!r} on the command line: write settings as name=value")
        texts[known(name.strip(), "command line")] = Text(value.strip(), "command line")
    return texts


def read_yaml(path):
    """The flat mapping in a YAML file as `{name: Text}`; every scalar stays text, so that 1e-3 and no mean what they say."""
    try:
        with open(path, encoding="utf-8") as file:
            root = yaml.compose(file, Loader=yaml.BaseLoader)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', None) or 'not UTF-8 text'})") from None
    except RecursionError:
        raise SettingsError(f"{path}: nested too deeply; settings are flat `name: value` lines") from None
    if root is None:
        raise SettingsError(f"{path}: is empty; write `name: value` lines, or leave the file out")
    if not isinstance(root, yaml.MappingNode):
        raise SettingsError(f"{path}, line {root.start_mark.line + 1}: expected `name: value` lines")
    texts = {}
    for key, value in root.value:
        where = f"{path}, line {key.start_mark.line + 1}"
        if not (isinstance(key, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode)):
            raise SettingsError(f"{where}: expected `name: value` with a single value")
        if known(key.value, where) in texts:
            raise SettingsError(f"{where}: {key.value} is set twice")
        texts[key.value] = Text(value.value, where)
    return texts


def known(name, where):
    """`name` if there is such a setting, else SettingsError with the nearest one."""
    if name not in FIELDS:
        near = difflib.get_close_matches(name, FIELDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FIELDS)}"
        raise SettingsError(f"unknown setting {name!r} ({where}): {hint}")
    return name


def convert(name, text):
    """The value of setting `name` from its text, of the declared type and within what it allows."""
    kind, allowed = FIELDS[name]
    value, where = text
    if kind == int | None:
        if value in ("", "null", "~"):
            return None
        kind = int
    if isinstance(allowed, tuple):
        value = value.lower() if kind is bool else value
        if value not in allowed:
            raise SettingsError(f"{name}={value!r} ({where}): choose one of {', '.join(allowed)}")
        return SWITCH[value] if kind is bool else value
    try:
        number = kind(value)
    except ValueError:
        raise SettingsError(f"{name}={value!r} ({where}): needs {'a whole number' if kind is int else 'a number'}") from None
    if kind is str:
        if "\0" in value:
            raise SettingsError(f"{name} ({where}): a path cannot hold a NUL character")
    elif not inside(allowed, number):
        raise SettingsError(f"{name}={value} ({where}): must lie in {allowed}")
    return number


def inside(interval, number):
    """Whether `number` lies in an interval written `[low, high)`; NaN lies in none."""
    low, high = map(float, interval[1:-1].split(","))
    above = number >= low if interval[0] == "[" else number > low
    return above and (number <= high if interval[-1] == "]" else number < high) and not math.isnan(number)


def dump(settings):
    """The settings as YAML text that `read` takes back unchanged."""
    return yaml.safe_dump(dataclasses.asdict(settings), sort_keys=False, allow_unicode=True)
