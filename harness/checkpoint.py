"""Checkpoints: what they say of their run, reading them, and whether they fit what is at hand."""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import data
import model
from data import Info
from harness.errors import UserError, say

FORMAT = 2
# What one needs to use a network, and so what best.pt holds.
FOR_USE = ("format", "torch", "network", "weights", "classes", "mean", "std", "source", "test_accuracy")
NEEDED = {"network": str, "weights": dict, "classes": list, "mean": list, "std": list}


def about(settings: Any, info: Info) -> dict[str, Any]:
    """What a checkpoint says of its run: the program, the settings and the data."""
    version = {"format": FORMAT, "torch": str(torch.__version__)}
    return version | {"network": settings.network, "settings": dataclasses.asdict(settings)} | info._asdict()


def load(path: Path, whole: bool = False) -> dict[str, Any]:
    """The checkpoint in a file, or the last weights in the folder of a run, on the CPU. Or UserError.

    `whole` if a training is to go on from it.
    """
    if path.is_dir():
        path = weights_file(path)
    damaged = UserError(f"{path}: is damaged or no checkpoint of this program")
    try:
        file = open(path, "rb")  # noqa: SIM115  closed below
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kinds of files that torch did not write
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # on a file of another kind torch raises whatever it stumbles over
            raise damaged from None
    found = content.get("format") if isinstance(content, dict) else None
    if found not in (1, FORMAT):
        raise UserError(f"{path}: has format {found}, this program reads formats 1 and {FORMAT}")
    if not usable(content):
        raise damaged
    if whole and "training" not in content:
        raise UserError(f"{path}: holds weights only; start a new run from them with weights={path}")
    return content


def usable(content: dict[str, Any]) -> bool:
    """Whether all that NEEDED names is there and of the right kind, and every number finite."""
    if not all(isinstance(content.get(name), kind) for name, kind in NEEDED.items()):
        return False
    mean, std, weights = content["mean"], content["std"], content["weights"]
    for values in (mean, std):
        if len(values) != 3 or not all(isinstance(each, float) and math.isfinite(each) for each in values):
            return False
    if min(std) <= 0 or not all(isinstance(name, str) for name in [*content["classes"], *weights]):
        return False
    return all(isinstance(each, Tensor) and bool(each.isfinite().all()) for each in weights.values())


def weights_file(run: Path) -> Path:
    """The last weights of the run in a folder: last.pt, else weights.pt. UserError if there is neither."""
    for name in ("last.pt", "weights.pt"):
        if (run / name).exists():
            return run / name
    raise UserError(f"{run}: holds no last.pt or weights.pt; give the folder of a run that does")


def load_for(setting: str, path: Path) -> dict[str, Any]:
    """The checkpoint that a setting names. UserError, which names the setting, if it cannot be had."""
    try:
        return load(path)
    except UserError as error:
        raise UserError(f"{setting}={error}") from None


def check_network(saved: dict[str, Any], network: str, classes: list[str]) -> None:
    """UserError if the checkpoint is of another network or other classes."""
    if saved["network"] != network:
        other = f"the weights are of {saved['network']}, config.yaml says {network}"
        raise UserError(f"{other}; put it right there")
    if saved["classes"] != classes:
        known = f"{len(saved['classes'])} classes ({some(saved['classes'])})"
        now = f"the data has {len(classes)} ({some(classes)})"
        raise UserError(f"the run knows {known}, {now}; give the data it was trained on")


def check_data(saved: dict[str, Any], info: Info) -> None:
    """UserError, which says what differs, unless the images are those that the run was trained on."""
    known = {"train_images": len(saved["losses"])} | saved if "losses" in saved else saved
    for part, count, digest in (
        ("training", "train_images", "train_digest"),
        (info.scored_on, "scored_images", "test_digest"),
    ):
        now, then = getattr(info, count), known.get(count)  # checkpoints of format 1 know little
        if then not in (None, now):
            differ = f"there were {then:,} {part} images, now there are {now:,}"
        elif known.get(digest) not in (None, getattr(info, digest)):
            differ = f"some of the {now:,} {part} images are others, changed or renamed"
        else:
            continue
        changed = f"the data has changed since the run began: {differ}"
        raise UserError(f"{changed}; bring back what was there, or start a new run")


def teachers(paths: list[Path], classes: list[str], size: int) -> list[model.Trained]:
    """The trained networks in files.

    UserError if one is not there, knows other classes, or cannot take images of `size`×`size` pixels.
    """
    networks = []
    for path in paths:
        saved = load_for("teachers", path)
        if saved["classes"] != classes:
            other = f"knows other classes ({some(saved['classes'])}) than the data ({some(classes)})"
            raise UserError(f"teachers={path}: {other}; give networks of these, or none: teachers=")
        try:
            networks.append(model.ready(saved))
        except model.NetworkError as error:
            raise UserError(f"teachers={path}: {error}") from None
        if model.refusal(networks[-1], size, len(classes)):
            small = f"images of {size} pixels, as the first epochs have"
            raise UserError(f"teachers={path}: cannot take {small}; set small_epochs=0")
        say(f"teacher   {path}: {saved['network']}")
    return networks


def digests(networks: Sequence[model.Trained]) -> list[str]:
    """A SHA-256 of the weights of each trained network, and of what it normalises by."""
    return [data.digest([value.float().cpu() for value in each.state_dict().values()]) for each in networks]


def check_teachers(saved: dict[str, Any], networks: Sequence[model.Trained]) -> None:
    """UserError unless the teachers are the networks that the run began with."""
    began = saved.get("teachers", [])
    if networks and not began:
        raise UserError("teachers: the run began without any; leave teachers= out, or start a new run")
    if began != digests(networks):
        others = f"these are not the {len(began)} networks that the run began with"
        raise UserError(f"teachers: {others}; give those, in the same order, with teachers=")


def some(names: list[str]) -> str:
    """The first of many names, as text."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def start_from(networks: list[nn.Module], path: Path, classes: list[str]) -> None:
    """Give networks the weights of a trained one, for other classes not those of its last layer.

    UserError if those of another network.
    """
    saved = load_for("weights", path)
    same = saved["classes"] == classes
    for network in networks:
        try:
            model.load_weights(network, saved["weights"], last_layer=same)
        except model.NetworkError as error:
            raise UserError(f"weights={path}: {error}") from None
    other = f"all but the last layer, for {len(classes)} other classes than its {len(saved['classes'])}"
    say(f"weights   {path}: {'all layers' if same else other}")
