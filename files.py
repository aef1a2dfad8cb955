"""Files written whole or not at all, and the run folder with its lock."""

import csv
import io
import os
import pickle
import platform
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
import torch

FORMAT = 1
COLUMNS = ["epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds"]


class RunError(Exception):
    """A run folder that cannot be used as asked; the message is one line that says what to do."""


def write_whole(path, data):
    """Write bytes to `path` so that it holds either the old content or all of the new, whatever happens meanwhile.

    The bytes reach the disk under another name before the rename makes them visible. Raises OSError (full disk, read-only folder).
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk does not say where
        raise
    if hasattr(os, "O_DIRECTORY"):  # the rename itself is on disk only once the folder is; Windows has no such call
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(path, content):
    """`torch.save` through `write_whole`, so that a full disk is an OSError and leaves the old file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getbuffer())


def load(path):
    """The dictionary `save` wrote, on the CPU. RunError where there is none, it is damaged or of another format."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path}: there is no such file") from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, AttributeError, pickle.UnpicklingError):
        raise RunError(f"{path}: is damaged or no checkpoint of this program") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise RunError(f"{path}: has format {found}, this program reads format {FORMAT}")
    return content


@contextmanager
def locked(folder):
    """Hold `folder`, made if need be, for this process; RunError names the process that already does.

    The operating system ends the lock with its process, however that dies. A folder still empty at the end is removed.
    """
    folder = Path(folder)
    owner, lock = folder / "owner.txt", filelock.FileLock(folder / "run.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except filelock.Timeout:
        name = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        raise RunError(f"{folder}: {name} is writing there; wait for it, stop it, or choose another out=") from None
    try:
        owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()


def write_metrics(path, rows):
    """metrics.csv from rows of numbers in the order of COLUMNS."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([f"{value:.6g}" for value in row] for row in rows)
    write_whole(path, text.getvalue().encode())


def read_metrics(path):
    """The rows of a metrics.csv as floats, one dictionary an epoch."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
