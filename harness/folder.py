"""The run folder: its lock, files written whole or not at all, metrics.csv, checkpoints."""

import csv
import datetime
import errno
import io
import itertools
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import filelock
import numpy as np
import torch
from PIL import Image

from data import Info
from harness import checkpoint, devices, earlier, pictures, report
from harness.errors import Stopped, UserError, command, say
from harness.metrics import Meter, Row, best
from harness.settings import Settings, dump

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

DRAW_EVERY = 60  # seconds at least between two drawings of curves.png, which takes longer than a short epoch
CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENAMETOOLONG, errno.ENOENT)
RETRIES, PATIENCE = 5, 0.5  # how often to try again, and after how many seconds, while a file is held open


class Training(Protocol):
    """What the run folder asks of a training."""

    info: Info
    rows: list[Row]  # one for each epoch done
    step: int  # steps done in the epoch under way
    steps: int  # steps of that epoch
    meter: Meter  # of that epoch
    test_seconds: float  # of the last test

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class RunFolder:
    """The folder of a run. On ranks above 0 everything that writes does nothing."""

    def __init__(
        self,
        path: Path,
        settings: Settings,
        saved: dict[str, Any] | None,
        tensorboard: "SummaryWriter | None",
    ) -> None:
        self.path, self.settings, self.saved, self.tensorboard = path, settings, saved, tensorboard
        self.rows: list[Row] = []  # of the epochs saved
        self.info: Info | None = None
        self.bar: report.Bar | None = None  # over the batches of the epoch under way
        self.stop = devices.StopSignal()
        self.batches = 0
        self.saved_at = self.drawn_at = time.monotonic()

    def begin(self, training: Training) -> None:
        """Bring the training to where its checkpoint left it, if there is one; it can be resumed from now on.

        UserError or NetworkError where the checkpoint is of another network or other data.
        """
        info = self.info = training.info
        if self.saved:
            checkpoint.check_network(self.saved, self.settings.network, info.classes)
            checkpoint.check_data(self.saved, info)
            begun = len(self.saved["rows"]) + (self.saved["step"] > 0)
            if self.settings.epochs < begun:
                asked = f"epochs={self.settings.epochs}"
                raise UserError(f"{asked}: {self.path} has begun {begun} epochs already; give no fewer")
            self.saved = earlier.checkpoint(self.saved, info.train_images)
            training.load_state_dict(self.saved)
            self.rows = list(training.rows)
            # These again, in case the run was killed after it wrote last.pt.
            self.write_best(training.state_dict())
            self.write_metrics()
            self.write_scalars(self.rows)
        self.stop.listen()
        if not self.saved:
            self.save(training)
        if not self.saved or len(self.rows) < self.settings.epochs:  # else these settings train nothing
            with devices.first_rank_first():
                self.write_config()

    def after_batch(self, training: Training) -> None:
        """Show the bar. Save if it is time or a signal came, and stop if one came. Raises Stopped.

        All ranks do the same.
        """
        if self.bar is None:
            self.bar = report.Bar(len(training.rows) + 1, training.steps, training.step - 1)
        self.bar.show(training.step, training.meter)
        self.batches += 1
        if not devices.time_to_agree(self.batches):
            return
        due = time.monotonic() - self.saved_at > 60 * self.settings.checkpoint_minutes
        due, number = devices.agree(due, self.stop.number)
        if due or number:
            self.save(training)
        if number:
            go_on = command("python", "train.py", "--resume", self.path)
            raise Stopped(f"stopped and saved; go on with: {go_on}", number)

    def after_epoch(self, training: Training) -> None:
        """Tell and save what the epoch gave."""
        self.close_bar()
        report.epoch(self.settings, self.info, training.rows, training.test_seconds)
        self.save(training)

    def save(self, training: Training) -> None:
        """Write last.pt, metrics.csv and, at the end of an epoch, best.pt if it was the best so far."""
        state = training.state_dict()
        self.saved_at, self.rows = time.monotonic(), list(training.rows)
        with devices.first_rank_first():
            self.write("last.pt", serialised(state))
        self.write_best(state)
        self.write_metrics()
        if training.step == 0:
            self.write_scalars(self.rows[-1:])
        if time.monotonic() - self.drawn_at > DRAW_EVERY:
            self.draw_curves()

    def write_best(self, state: dict[str, Any]) -> None:
        """Write best.pt, if the state is that at the end of the best epoch so far."""
        if state["step"] == 0 and self.rows and best(self.rows) is self.rows[-1]:
            for_use = {name: state[name] for name in checkpoint.FOR_USE}
            self.write("best.pt", serialised(for_use), optional=True, retries=RETRIES)

    def write_scalars(self, rows: Sequence[Row]) -> None:
        """Give rows to TensorBoard, where that is on."""
        if self.tensorboard:
            for row in rows:
                for name, value in row._asdict().items():
                    self.tensorboard.add_scalar(name, value, row.epoch)

    def write_config(self) -> None:
        """Write config.yaml; if a new run cannot, there is none, so that it can be begun again."""
        try:
            self.write("config.yaml", dump(self.settings).encode())
        except OSError:
            if not self.saved:
                for name in ("last.pt", "metrics.csv"):
                    (self.path / name).unlink(missing_ok=True)
            raise

    def write_metrics(self) -> None:
        """Write metrics.csv, a row for each epoch saved."""
        text = metrics_text(self.rows, self.info.scored_on)
        self.write("metrics.csv", text.encode(), optional=True, retries=0)

    def write(
        self, name: str, content: bytes | memoryview, optional: bool = False, retries: int = RETRIES
    ) -> None:
        """Write a file. What is `optional` costs no run: a note tells what went wrong."""
        if devices.rank() > 0:
            return
        try:
            write_whole(self.path / name, content, retries=retries)
        except OSError as error:
            if not optional:
                raise
            say(f"note: {self.path / name} could not be written ({error.strerror}); the training goes on")

    def draw(self, name: str, draw: Callable[[], "Figure"], epoch: int = 0) -> None:
        """Write the picture NAME.png that `draw` makes, and put it into TensorBoard where that is on."""
        if devices.rank() > 0 or not (content := pictures.png(draw, f"{name}.png")):
            return
        self.write(f"{name}.png", content, optional=True, retries=0)
        if self.tensorboard:
            pixels = np.asarray(Image.open(io.BytesIO(content)))
            self.tensorboard.add_image(name, pixels, epoch, dataformats="HWC")

    def draw_curves(self) -> None:
        """Draw curves.png of the epochs done."""
        self.drawn_at = time.monotonic()
        if self.rows:
            self.draw("curves", lambda: pictures.curves(self.rows, self.info), len(self.rows))

    def close_bar(self) -> None:
        """Take the bar off the screen."""
        if self.bar:
            self.bar.close()
            self.bar = None

    def end(self) -> None:
        """Take the bar away, draw the curves and give the signals back, however the training ended."""
        self.close_bar()
        self.draw_curves()
        self.stop.release()


@contextmanager
def run_folder(settings: Settings, resume: Path | None) -> Iterator[RunFolder]:
    """The folder of a run, in which this process alone may write, with the checkpoint to `resume` from.

    At the end, however it comes, curves.png is drawn. UserError where another process holds the folder, it
    already holds a run, or there is no checkpoint to resume.
    """
    first, path = devices.rank() == 0, resume or Path(settings.out)
    with ExitStack() as stack:
        with devices.first_rank_first():
            if first:
                refuse_class(path if settings.out or resume else Path("runs"), settings)
                path = path if settings.out or resume else fresh(settings.network)
                stack.enter_context(locked(path, resume))
                refuse_other_run(path, resume)
        saved = checkpoint.load(path / "last.pt", whole=True) if resume else None
        writer = None
        if settings.tensorboard and first:
            writer = stack.enter_context(open_tensorboard(path))
        folder = RunFolder(path, settings, saved, writer)
        try:
            yield folder
        finally:
            folder.end()


def fresh(network: str) -> Path:
    """A new folder runs/NETWORK-DATE-TIME, with a number behind it where another run took that name."""
    stem = f"runs/{network}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    try:
        Path("runs").mkdir(exist_ok=True)
    except FileExistsError:
        raise UserError("runs: is no folder; rename it, or give a run folder with out=") from None
    for number in itertools.count(1):
        path = Path(stem if number == 1 else f"{stem}-{number}")
        with suppress(FileExistsError):
            path.mkdir()
            return path


def refuse_class(path: Path, settings: Settings) -> None:
    """UserError if the run folder would lie among the folders of data_dir that are classes."""
    root = Path(settings.data_dir).resolve()
    parts = [root / "train", root / "test"] if (root / "train").is_dir() else [root]
    if settings.dataset == "folder" and not set(parts).isdisjoint(path.resolve().parents):
        raise UserError(f"{path}: lies in data_dir and would be a class; give a folder elsewhere with out=")


def refuse_other_run(path: Path, resume: Path | None) -> None:
    """UserError if a new run would be written over what is in the folder."""
    names = ("config.yaml", "last.pt", "metrics.csv")
    there = [name for name in names if (path / name).exists()]
    if resume or not there:
        return
    if "config.yaml" in there and "last.pt" in there:
        go_on = command("python", "train.py", "--resume", path)
        raise UserError(f"{path}: already holds a run; choose another out=, or go on with it: {go_on}")
    raise UserError(
        f"{path}: already holds a {there[0]}; choose another out=, or remove that file if a run left it"
    )


@contextmanager
def locked(folder: Path, resume: Path | None) -> Iterator[None]:
    """Hold `folder`, made if need be, for this process; UserError names the process that already does.

    The operating system ends the lock with its process, however that dies. A folder still empty at the end is
    removed. Where the file system has no locks, a note says so.
    """
    owner, lock = folder / "owner.txt", filelock.FileLock(folder / "run.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{folder}: is a file, or lies in one; give a folder with out=") from None
    except filelock.Timeout:
        name = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        other = "or stop it" if resume else "stop it, or choose another out="
        gone = f"if it is long gone, delete {lock.lock_file}"
        raise UserError(f"{folder}: {name} is writing there; wait for it, {other}; {gone}") from None
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", None) in CANNOT_WRITE:
            raise
        say(f"note: {folder} cannot be locked ({error}); do not start a second training there")
    try:
        owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            owner.unlink(missing_ok=True)
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)
            folder.rmdir()


def open_tensorboard(folder: Path) -> "SummaryWriter":
    """A writer of TensorBoard's files, in place of what an earlier part of the run wrote there."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "tensorboard=true needs a package that is not here: pip install tensorboard"
        ) from None
    return SummaryWriter(folder / "tensorboard", purge_step=0)


def write_whole(path: Path, content: bytes | memoryview, retries: int = 0) -> None:
    """Write bytes to `path` so that it holds either the old content or all of the new, whatever happens.

    The bytes reach the disk under another name before the rename makes them visible. On Windows that fails
    while another program holds the file open; it is tried again so often.
    Raises OSError for a full disk, a read-only folder or a file that stays open elsewhere.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path, retries)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk does not say where
        raise
    # The rename itself is on disk only once the folder is, for which Windows and some networks have no call.
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_DIRECTORY)
        with suppress(OSError):
            os.fsync(folder)
        os.close(folder)


def replace(temporary: Path, path: Path, retries: int) -> None:
    """Give a file its name, which another program may hold for a moment."""
    while True:
        try:
            os.replace(temporary, path)
            return
        except PermissionError:
            if retries == 0:
                raise
            retries -= 1
            time.sleep(PATIENCE)


def serialised(content: dict[str, Any]) -> memoryview:
    """What `torch.save` writes. In memory, since its own writer makes something else of a full disk."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def metrics_text(rows: Sequence[Row], scored_on: str = "test") -> str:
    """metrics.csv, whose first line says which images were scored: `test_loss` or `heldout_loss`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(name.replace("test", scored_on.replace("-", "")) for name in Row._fields)
    writer.writerows([f"{value:.6g}" for value in row] for row in rows)
    return text.getvalue()


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics.csv, whichever images were scored. UserError if it is absent or damaged."""
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            heads, *lines = csv.reader(file)
            if heads[:2] != list(Row._fields[:2]):
                raise ValueError(heads)
            return [Row(int(line[0]), *map(float, line[1:])) for line in lines]
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (ValueError, TypeError, IndexError, csv.Error):
        raise UserError(f"{path}: is damaged or no table of this program") from None
