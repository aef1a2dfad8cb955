"""What goes wrong, told in one line and an exit code."""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import torch.distributed as dist


class UserError(Exception):
    """The user's mistake; the message is one line that names the setting or file and says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # what the user wrote may hold line breaks


class Stopped(Exception):
    """A signal ended the training, which is saved; the message says how to go on."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


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
    traceback.
    """
    outcome, first = Outcome(), not dist.is_initialized() or dist.get_rank() == 0
    try:
        yield outcome
        return
    except Stopped as stopped:
        outcome.code = 128 + stopped.number
        if first:  # all ranks stop alike
            print(stopped, file=sys.stderr)
        return
    except (UserError, *mistakes) as error:
        message, outcome.code = f"error: {error}", 2
    except KeyboardInterrupt:
        message, outcome.code = "stopped before the first step; there was nothing to save", 130
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        message, outcome.code = f"error: {place}{error.strerror or error}; what was saved before is intact", 1
    except RuntimeError as error:
        if not dist.is_initialized() or "onnection" not in str(error):
            raise
        message, outcome.code = "another rank is gone; its own error tells why", 1
        time.sleep(5)
    if not first:  # if the first rank has failed too, torchrun ends this one before it says the same again
        time.sleep(5)
    print(message, file=sys.stderr)
