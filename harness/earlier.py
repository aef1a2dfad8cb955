"""Runs that earlier versions of this program began: their settings and checkpoints in today's terms."""

from typing import Any

import torch

import data

# A setting that the config.yaml of a run lacks did not exist when it began. What the program did then:
ADDED = {
    "whiten": "false",
    "average": "0",
    "small_epochs": "0",
    "small_size": "24",
    "tensorboard": "false",
    "cutmix": "0",
    "weights": "",
    "holdout": "0",
    "leave_out": "0",
    "autoaugment": "false",
    "teachers": "",
}
# Settings that are gone, and the values that meant off.
RETIRED = {
    "plain_epochs": ("", "0"),
    "mixup": ("0", "0.0"),
    "rotate": ("0", "0.0"),
    "colour": ("0", "0.0"),
    "sync_batchnorm": ("false",),
}
RENAMED = {("compile", "auto"): "off", ("device", "mps"): "auto"}  # values that are gone


def checkpoint(saved: dict[str, Any], images: int) -> dict[str, Any]:
    """A checkpoint as today's program writes it; `images` are those it trains on.

    Format 1 held the losses of the epoch under way apart from those before it, and not which images it
    trains on: these follow from the losses before.
    """
    if saved["format"] != 1:
        return saved
    settings, losses = saved["settings"], saved.get("losses", torch.zeros(images))
    share = data.left_out(settings.get("leave_out", 0.0), settings["epochs"], len(saved["rows"]))
    chosen = data.least_known(losses, share, settings["batch_size"])
    if saved["step"] > 0:
        losses = losses.clone()
        losses[chosen] = saved.get("new_losses", torch.zeros(images))[chosen]
    settings = settings | {"compile": False}  # it could be `auto`
    state = {"losses": losses, "images": chosen, "meter": saved["totals"], "lr_since": 0}
    return saved | {"settings": settings} | state
