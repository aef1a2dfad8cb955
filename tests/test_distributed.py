from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

import data
import files
import settings
import train
from soak import launch


def gradients(rank, world, address, pairs, path):
    """On rank 0, save the gradients after one update on the first and on the last, short batch of an epoch."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    chosen = train.resolve(settings.read(pairs))
    trainer = train.Trainer(chosen, data.load("folder", chosen.data_dir), torch.device("cpu"))
    found = []
    for trainer.step, (images, labels) in enumerate(trainer.train_loader.epoch()):
        trainer.network.eval()  # BatchNorm's own statistics would differ between one process and several
        trainer.update(torch.nn.functional.cross_entropy(trainer.forward(images), labels, reduction="sum"))
        found += [parameter.grad.clone() for parameter in trainer.network.parameters() if parameter.requires_grad]
    if rank == 0:
        torch.save(found, path)
    if world > 1:
        del trainer
        train.leave()
        threads = [Path(task, "comm").read_text() for task in Path("/proc/self/task").glob("*")]  # empty where there is no /proc
        assert not any("gloo" in name for name in threads), threads


def test_gradients_of_two_ranks_are_those_of_one_process(arguments, tmp_path):
    pairs = [*arguments, "precision=float32", "dropout=0", "small_epochs=0"]
    gradients(0, 1, None, pairs, tmp_path / "one.pt")
    torch.multiprocessing.spawn(gradients, (2, (tmp_path / "meeting").as_uri(), pairs, tmp_path / "two.pt"), nprocs=2)
    one, two = torch.load(tmp_path / "one.pt"), torch.load(tmp_path / "two.pt")
    assert len(one) == len(two) > 0
    for a, b in zip(one, two):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5 * a.abs().max().item() + 1e-7)


def test_torchrun_gives_one_set_of_files_and_counts_each_image_once(arguments, tmp_path):
    process = launch(*arguments, ranks=2)
    out, error = process.communicate(timeout=120)
    run = tmp_path / "run"
    assert process.returncode == 0, error
    assert out.count("epoch   2/2") == 1 and "2 ranks" in out
    assert sorted(path.name for path in run.iterdir()) == ["best.pt", "config.yaml", "curves.png", "last.pt", "metrics.csv", "samples.png"]
    rows = files.read_metrics(run / "metrics.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    for part, images in (("train", 21), ("test", 12)):
        for row in rows:
            right = row[f"{part}_accuracy"] * images / 100
            assert right == pytest.approx(round(right), abs=1e-3)


def test_torchrun_shows_an_error_once(arguments, tmp_path):
    process = launch(*arguments, f"data_dir={tmp_path / 'none'}", ranks=2)
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0 and error.count("error: ") == 1 and "there is no such folder" in error and not (tmp_path / "run").exists()


def test_a_batch_smaller_than_the_ranks_is_refused(arguments, monkeypatch, call):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 6)
    monkeypatch.setattr(dist, "all_reduce", lambda *_: None)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda network: network)
    code, _, error = call(*arguments)
    assert code == 2 and "batch_size=8" in error and len(error.splitlines()) == 1
