"""What a checkpoint holds, and how a training goes on from one or starts from another's weights."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import model
from harness import devices
from harness.errors import UserError
from harness.metrics import Row

if TYPE_CHECKING:
    from train import Training

FORMAT = 1
NEEDED = {"network", "weights", "classes", "mean", "std"}  # to use a network


def for_use(training: "Training") -> dict[str, Any]:
    """What one needs to use the network: the averaged weights and how its images are to be normalised."""
    about, rows = training.about, training.rows
    return {
        "format": FORMAT,
        "torch": str(torch.__version__),
        "network": training.settings.network,
        "weights": training.average.module.state_dict(),
        "classes": about.classes,
        "mean": about.mean,
        "std": about.std,
        "source": about.source,
        "test_accuracy": rows[-1].test_accuracy if rows else None,
    }


def state(training: "Training") -> dict[str, Any]:
    """Everything a training needs to go on. UserError if its loss is no longer finite."""
    return for_use(training) | {
        "settings": dataclasses.asdict(training.settings),
        "training": training.network.state_dict(),
        "averaged": int(training.average.n_averaged),
        "optimizer": training.optimizer.state_dict()["state"],
        "rows": [list(row) for row in training.rows],
        "step": training.step,
        "seconds": training.seconds,
        "totals": training.sums.total(),
        "losses": training.losses.known,
        "new_losses": devices.total(training.losses.new),
    }


def restore(training: "Training", saved: dict[str, Any]) -> None:
    """Go back to where `state` was called. Learning rates and the like are those of the settings now.

    UserError or NetworkError where the checkpoint is of another network or other data.
    """
    check_same(saved, training.settings.network, training.about.classes)
    model.give(training.average.module, saved["weights"])
    model.give(training.network, saved["training"])
    training.average.n_averaged.fill_(saved["averaged"])
    training.optimizer.step()  # does nothing without gradients, but StepLR wants to see it first
    for _ in saved["rows"]:
        training.scheduler.step()
    optimizer = training.optimizer
    optimizer.load_state_dict(optimizer.state_dict() | {"state": saved["optimizer"]})
    training.rows = [Row(*row) for row in saved["rows"]]
    if "losses" in saved:  # older checkpoints have none
        training.losses.known.copy_(saved["losses"])
    training.begin_epoch()
    training.step, training.seconds = saved["step"], saved["seconds"]
    training.sums.restore(saved["totals"])
    if "losses" in saved and devices.rank() == 0:  # it holds those of all ranks, like the sums
        training.losses.new.copy_(saved["new_losses"])


def check_same(saved: dict[str, Any], network: str, classes: list[str]) -> None:
    """UserError if the checkpoint is of another network or other classes."""
    if (saved["network"], saved["classes"]) != (network, classes):
        raise UserError(
            f"last.pt holds {saved['network']} for {len(saved['classes'])} classes, the settings ask for "
            f"{network} for {len(classes)}; give the data it was trained on"
        )


def start_from(training: "Training", path: Path) -> None:
    """Take the weights of a trained network, for other classes not those of the last layer; prints which."""
    saved, classes = load(path), training.about.classes
    same = saved["classes"] == classes
    for network in (training.network, training.average.module):
        model.give(network, saved["weights"], last_layer=same)
    other = f"all but the last layer, for {len(classes)} other classes than its {len(saved['classes'])}"
    print(f"weights   {path}: {'all layers' if same else other}")


def load(path: Path, whole: bool = False) -> dict[str, Any]:
    """The checkpoint in `path`, on the CPU; `whole` if a training is to go on from it. Or UserError."""
    damaged = UserError(f"{path}: is damaged or no checkpoint of this program")
    try:
        with open(path, "rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except Exception:  # on a file of another kind torch raises whatever it stumbles over
        raise damaged from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(f"{path}: has format {found}, this program reads format {FORMAT}")
    if not content.keys() >= NEEDED:
        raise damaged
    if whole and "training" not in content:
        raise UserError(f"{path}: holds weights only; start a new run from them with weights={path}")
    return content
