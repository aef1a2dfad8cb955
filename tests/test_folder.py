import csv
import errno
import os
import stat
import sys
from contextlib import nullcontext

import filelock
import pytest
from soak import same_run

from harness import folder
from harness.errors import UserError
from harness.metrics import Row


def test_second_process_is_refused_and_a_dead_ones_lock_is_not(call, arguments, tmp_path):
    run = tmp_path / "run"
    with folder.locked(run, resume=None):
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


@pytest.mark.parametrize("content", [b"garbage", b"", b"epoch,lr\n1\n", b"epoch,lr\nx,y\n", b"\xff"])
def test_a_damaged_table_is_named(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UserError, match="metrics.csv: is damaged"):
        folder.read_metrics(tmp_path / "metrics.csv")


def test_tensorboard_is_optional(call, arguments, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, error = call(*arguments, "tensorboard=true")
    assert code == 2 and "pip install tensorboard" in error and len(error.splitlines()) == 1


class Board:
    """A SummaryWriter that only remembers."""

    def __init__(self):
        self.scalars, self.images = [], []

    def add_scalar(self, name, value, step):
        self.scalars.append((name, step))

    def add_image(self, name, pixels, step, dataformats):
        assert dataformats == "HWC" and pixels.ndim == 3
        self.images.append((name, step))


def test_tensorboard_gets_scalars_and_pictures_and_all_rows_again(call, arguments, tmp_path, monkeypatch):
    on, resume = [*arguments, "tensorboard=true"], ["--resume", tmp_path / "run", "epochs=3"]
    for words, epochs in ((on, 2), (resume, 3)):
        board = Board()
        monkeypatch.setattr(folder, "open_tensorboard", lambda path, board=board: nullcontext(board))
        assert call(*words)[0] == 0
        assert board.scalars == [(name, epoch) for epoch in range(1, epochs + 1) for name in Row._fields]
        assert {("samples", 0), ("curves", epochs)} <= set(board.images)


def held_open(monkeypatch, names, times=10**6):
    """Let files of these names be held open by another program, so many times; returns the names met."""
    met, replace = [], os.replace

    def refuse(source, target):
        if os.path.basename(target) in names and len(met) < times:
            met.append(os.path.basename(target))
            raise PermissionError(errno.EACCES, "Permission denied", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(folder, "PATIENCE", 0)
    return met


def test_files_that_another_program_holds_open_are_left_and_noted(
    call, arguments, tmp_path, finished, monkeypatch
):
    held_open(monkeypatch, ["metrics.csv", "curves.png", "samples.png", "best.pt"])
    code, out, error = call(*arguments)
    assert (code, error) == (0, "")
    for name in ("metrics.csv", "curves.png", "samples.png", "best.pt"):
        assert f"{name} could not be written (Permission denied); the training goes on" in out
    monkeypatch.undo()
    assert call("--resume", tmp_path / "run")[0] == 0  # the next save writes what is missing
    assert same_run(tmp_path / "run", finished)


def test_the_best_weights_are_worth_a_few_tries(call, arguments, tmp_path, finished, monkeypatch):
    held_open(monkeypatch, ["best.pt"], 3)
    code, out, _ = call(*arguments)
    assert code == 0 and "could not be written" not in out
    assert same_run(tmp_path / "run", finished)


@pytest.mark.parametrize("times, code", [(3, 0), (10**6, 1)])
def test_the_checkpoint_is_worth_a_few_tries(call, arguments, tmp_path, monkeypatch, times, code):
    met = held_open(monkeypatch, ["last.pt"], times)
    got, _, error = call(*arguments)
    assert got == code and len(met) == min(times, folder.RETRIES + 1)
    if code:
        assert "last.pt: Permission denied" in error and len(error.splitlines()) == 1


def test_a_file_system_without_locks_or_fsync_of_folders_will_do(
    call, arguments, tmp_path, finished, monkeypatch
):
    def no_locks(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    def only_files(descriptor, fsync=os.fsync):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    monkeypatch.setattr(os, "fsync", only_files)
    code, out, error = call(*arguments)
    assert (code, error) == (0, "") and "cannot be locked" in out and "second training" in out
    assert same_run(tmp_path / "run", finished)


def test_runs_begun_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len({folder.fresh("fast") for _ in range(3)}) == 3
    assert all(path.name.startswith("fast-") for path in (tmp_path / "runs").iterdir())


def test_runs_that_is_no_folder_is_named(call, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    code, _, error = call(*arguments[:-1])
    assert code == 2 and "runs: is no folder" in error and len(error.splitlines()) == 1


def test_a_run_without_out_names_its_folder_itself(call, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments[:-1])[0] == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("fast-20") and "out: ''" in (run / "config.yaml").read_text()
    assert call("--resume", run, "out=other")[0] == 2
