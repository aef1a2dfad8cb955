"""The test accuracy of a run that is there: in total, by class, over several views, and its mistakes."""

from pathlib import Path

import torch

import data
import model
from harness import checkpoint, devices, folder, pictures, report
from harness.errors import UserError
from harness.settings import Settings

TEST_BATCH = 250  # images; on a CPU 1,000 do not fit the cache, and testing `s8` takes 1.5 times as long


def evaluate(settings: Settings, path: Path) -> None:
    """Print the test accuracy of the run in the folder `path`, and draw which classes it takes for which."""
    if devices.world_size() > 1:
        raise UserError("--evaluate needs one device only: start it with python, not torchrun")
    device, saved = devices.pick(settings.device), checkpoint.load(path)
    info, _, test = data.load(settings.dataset, settings.data_dir, settings.holdout, settings.seed)
    checkpoint.check_network(saved, settings.network, info.classes)
    if info.scored_on == "held-out" and saved.get("train_digest") != info.train_digest:
        print("note: the network may have been trained on some of these images")
    network = devices.place(model.ready(saved).network, device)
    images = data.Loader(test, info._replace(mean=saved["mean"], std=saved["std"]), TEST_BATCH, device)
    with torch.no_grad(), devices.autocast(device, settings.precision):
        logits = {
            views: torch.cat([model.logits(network, batch.images, views).cpu() for batch in images.batches()])
            for views in report.VIEWS
        }
    report.evaluation(path, info, saved, test.labels, logits)
    drawings = {
        "confusion.png": lambda: pictures.confusion(test.labels, logits[1], info),
        "mistakes.png": lambda: pictures.mistakes(test, logits[1], info),
    }
    for name, draw in drawings.items():
        if content := pictures.png(draw, name):
            folder.write_whole(path / name, content)
            print(f"picture in {path / name}")
