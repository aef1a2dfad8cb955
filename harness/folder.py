"""The run folder: its lock, files written whole or not at all, metrics.csv, checkpoints."""

import csv
import io
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import torch
from matplotlib.figure import Figure

from harness import checkpoint, devices, pictures
from harness.errors import Stopped, UserError
from harness.metrics import Row, best

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from train import Training

DRAW_EVERY = 60  # seconds at least between two drawings of curves.png, which takes longer than a short epoch


class RunFolder:
    """The folder of a run. On ranks above 0 everything that writes does nothing."""

    def __init__(self, path: Path, tensorboard: "SummaryWriter | None" = None) -> None:
        self.path, self.tensorboard = path, tensorboard
        self.training: Training | None = None  # that was last saved
        self.saved_at = self.drawn_at = time.monotonic()

    def write(self, name: str, text: str) -> None:
        """Write a text file."""
        if devices.rank() == 0:
            write_whole(self.path / name, text.encode())

    def draw(self, name: str, figure: Figure, epoch: int = 0) -> None:
        """Write a picture, NAME.png, and put it into TensorBoard where that is on."""
        if devices.rank() == 0:
            write_picture(self.path / f"{name}.png", figure)
        if self.tensorboard:
            self.tensorboard.add_figure(name, figure, epoch)

    def draw_curves(self) -> None:
        """Draw curves.png of the epochs done."""
        self.drawn_at = time.monotonic()
        if devices.rank() == 0 and self.training and self.training.rows:
            rows, about = self.training.rows, self.training.about
            self.draw("curves", pictures.curves(rows, about), len(rows))

    def save(self, training: "Training") -> None:
        """Write last.pt, metrics.csv and, at the end of an epoch, best.pt if it was the best so far."""
        self.saved_at, self.training = time.monotonic(), training
        state, rows = checkpoint.state(training), training.rows
        if devices.rank() > 0:
            return
        epoch_ended = training.step == 0 and rows
        if epoch_ended and best(rows) is rows[-1]:
            save(self.path / "best.pt", checkpoint.for_use(training))
        save(self.path / "last.pt", state)
        write_metrics(self.path / "metrics.csv", rows, training.about.scored_on)
        if epoch_ended and self.tensorboard:
            for name, value in rows[-1]._asdict().items():
                self.tensorboard.add_scalar(name, value, len(rows))
        if time.monotonic() - self.drawn_at > DRAW_EVERY:
            self.draw_curves()

    def attend(self, training: "Training", stop: devices.StopSignal) -> None:
        """Between two batches: save if it is time or a signal came, and stop if one came. Raises Stopped.

        All ranks do the same.
        """
        due = time.monotonic() - self.saved_at > 60 * training.settings.checkpoint_minutes
        due, number = devices.agree(due, stop.number)
        if due or number:
            self.save(training)
        if number:
            raise Stopped(f"stopped and saved; go on with: python train.py --resume {self.path}", number)


@contextmanager
def held(path: Path, resume: bool, tensorboard: bool) -> Iterator[tuple[RunFolder, dict[str, Any] | None]]:
    """The run folder, which this process alone may write in, and with `resume` its last checkpoint.

    At the end, however it comes, curves.png is drawn. UserError where another process holds the folder, it
    already holds a run, or there is no checkpoint to resume.
    """
    first = devices.rank() == 0
    with locked(path) if first else nullcontext():
        if not resume and any((path / name).exists() for name in ("config.yaml", "last.pt", "metrics.csv")):
            go_on = f"python train.py --resume {path}"
            raise UserError(f"{path}: already holds a run; choose another out=, or go on with it: {go_on}")
        saved = checkpoint.load(path / "last.pt", whole=True) if resume else None
        epochs = len(saved["rows"]) if saved else 0
        with open_tensorboard(path, epochs) if tensorboard and first else nullcontext() as writer:
            out = RunFolder(path, writer)
            try:
                yield out, saved
            finally:
                out.draw_curves()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder`, made if need be, for this process; UserError names the process that already does.

    The operating system ends the lock with its process, however that dies. A folder still empty at the end is
    removed.
    """
    owner, lock = folder / "owner.txt", filelock.FileLock(folder / "run.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except filelock.Timeout:
        name = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        raise UserError(
            f"{folder}: {name} is writing there; wait for it, stop it, or choose another out="
        ) from None
    try:
        owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()


def open_tensorboard(folder: Path, epochs: int) -> "SummaryWriter":
    """A writer of TensorBoard's files, which forgets what an earlier part of the run wrote after `epochs`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "tensorboard=true needs a package that is not here: pip install tensorboard"
        ) from None
    return SummaryWriter(folder / "tensorboard", purge_step=epochs + 1)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write bytes to `path` so that it holds either the old content or all of the new, whatever happens.

    The bytes reach the disk under another name before the rename makes them visible.
    Raises OSError for a full disk or a read-only folder.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk does not say where
        raise
    # The rename itself is on disk only once the folder is. Windows has no call for that.
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(path: Path, content: dict[str, Any]) -> None:
    """`torch.save` through `write_whole`, so that a full disk is an OSError and leaves the old file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getbuffer())


def write_picture(path: Path, figure: Figure) -> None:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole(path, buffer.getbuffer())


def write_metrics(path: Path, rows: Sequence[Row], scored_on: str = "test") -> None:
    """metrics.csv, whose first line says which images were scored: `test_loss` or `heldout_loss`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(name.replace("test", scored_on.replace("-", "")) for name in Row._fields)
    writer.writerows([f"{value:.6g}" for value in row] for row in rows)
    write_whole(path, text.getvalue().encode())


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics.csv, whichever images were scored. UserError if there is none."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            _, *lines = csv.reader(file)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    return [Row(int(line[0]), *map(float, line[1:])) for line in lines]
