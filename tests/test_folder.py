import csv
import os
import sys

import pytest

from harness import folder
from harness.metrics import Row


def test_second_process_is_refused_and_a_dead_ones_lock_is_not(call, arguments, tmp_path):
    run = tmp_path / "run"
    with folder.locked(run):
        code, _, error = call(*arguments)
        assert code == 2 and f"process {os.getpid()}" in error and len(error.splitlines()) == 1
    run.mkdir()
    (run / "run.lock").touch()
    (run / "owner.txt").write_text("process 1 on nowhere")
    assert call(*arguments)[0] == 0


def test_file_size_limit_keeps_the_old_file(tmp_path):
    resource = pytest.importorskip("resource", reason="needs POSIX limits")
    path = tmp_path / "file"
    folder.write_whole(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError):
            folder.write_whole(path, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == ["file"]


def test_metrics_are_read_as_they_were_written(tmp_path):
    rows = [Row(1, 0.1, 2.5, 10.0, 2.25, 12.5, 3.0), Row(2, 0.05, 2.0, 20.0, 2.125, 25.0, 3.5)]
    for scored_on, name in (("test", "test_loss"), ("held-out", "heldout_loss")):
        (tmp_path / "metrics.csv").write_text(folder.metrics_text(rows, scored_on))
        with open(tmp_path / "metrics.csv", newline="") as file:
            assert name in next(csv.reader(file))
        assert folder.read_metrics(tmp_path / "metrics.csv") == rows


def test_tensorboard_is_optional(call, arguments, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, error = call(*arguments, "tensorboard=true")
    assert code == 2 and "pip install tensorboard" in error and len(error.splitlines()) == 1


def test_tensorboard_gets_scalars_and_pictures(call, arguments, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert call(*arguments, "tensorboard=true")[0] == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("test_accuracy")] == [1, 2] and {
        "samples",
        "curves",
    } <= set(events.Tags()["images"])
