"""What goes wrong, told in one line and an exit code; output that nobody reads; lines for copying."""

import argparse
import io
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

import torch.distributed as dist

INTERRUPTED = 128 + signal.SIGINT
READER_GONE = 128 + 13  # 13 is SIGPIPE, which Windows lacks


class UserError(Exception):
    """The user's mistake; the message is one line that names the setting or file and says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # what the user wrote may hold line breaks


class Stopped(Exception):
    """A signal ended the training, which is saved; the message says how to go on."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class FirstRankFailed(Exception):
    """The first of several ranks cannot go on, and says why itself."""


class Parser(argparse.ArgumentParser):
    """A parser that shows a script's docstring as it stands, and whose errors are one line: UserError."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise UserError(f"{message}; --help shows how to call it")


@dataclass
class Outcome:
    """How a block ended: 0 done, 1 cannot write, 2 the user's mistake, 128 + signal stopped."""

    code: int = 0


@contextmanager
def one_line_errors(*mistakes: type[Exception]) -> Iterator[Outcome]:
    """Turn what goes wrong in the block into one line on stderr and the exit code of the Outcome.

    Besides UserError, exceptions of the types `mistakes` are the user's. A fault of the program stays a
    traceback. Where the reader of the output is gone, as in `| head`, the block ends without a word.
    """
    prepare_streams()
    outcome, message, first = Outcome(), "", not dist.is_initialized() or dist.get_rank() == 0
    try:
        yield outcome
        sys.stdout.flush()  # what cannot be written shows here, not when the interpreter ends
    except Stopped as stopped:
        message, outcome.code = str(stopped) if first else "", 128 + stopped.number  # all ranks stop alike
    except FirstRankFailed:
        outcome.code = 1
    except (UserError, *mistakes) as error:
        message, outcome.code = f"error: {error}", 2
        if not first:
            time.sleep(5)  # torchrun ends this rank meanwhile if the first one has said the same
    except KeyboardInterrupt:
        message, outcome.code = "interrupted", INTERRUPTED
    except OSError as error:
        if reader_gone(error):
            outcome.code = READER_GONE
        else:
            place = f"{error.filename}: " if error.filename else "the output: "
            kept = "; what was saved before is intact" if error.filename else ""
            message, outcome.code = f"error: {place}{error.strerror or error}{kept}", 1
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        message, outcome.code = "error: there is not enough memory for this; lower batch_size", 2
    if message:
        tell(message)
    try:
        sys.stdout.flush()
    except OSError:
        discard(sys.stdout)


def prepare_streams() -> None:
    """Let no character and no closed stream end the program, and Ctrl-C raise KeyboardInterrupt."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # after `2>&-`, or under pythonw
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):  # cp1251 lacks ×, no encoding has every file name
            stream.reconfigure(errors="backslashreplace")
    main_thread = threading.current_thread() is threading.main_thread()
    if main_thread and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def reader_gone(error: OSError) -> bool:
    """Whether a write failed since the other end of the pipe is closed; Windows calls that EINVAL."""
    windows = sys.platform == "win32" and error.errno == 22 and error.filename is None
    return isinstance(error, BrokenPipeError) or windows


def out_of_memory(error: Exception) -> bool:
    """Whether torch found no memory; on a CPU it has no exception of its own for that."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "not enough memory", "can't allocate memory")
    )


def say(text: str) -> None:
    """Print a line of a training, which goes on where nobody can read it any more."""
    try:
        print(text, flush=True)
    except OSError as error:
        discard(sys.stdout)
        tell(f"note: the output cannot be written any more ({error.strerror}); the training goes on")


def tell(text: str) -> None:
    """Print a line on stderr, if that is still there: a closed terminal takes it along."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Send what is written to a stream from now on, and what waits in its buffer, nowhere."""
    with suppress(OSError, ValueError):  # a notebook's stream is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def command(*words: str | Path) -> str:
    """A command line for copying, whose words are quoted where they need it."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)
