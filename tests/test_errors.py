import io
import os
import sys

import pytest

from harness.errors import Stopped, UserError, one_line_errors


@pytest.mark.parametrize(
    "error, code, words",
    [
        (UserError("lr: no\nsuch"), 2, "error: lr: no such"),
        (LookupError("known as the user's"), 2, "error: known as the user's"),
        (Stopped("stopped and saved", 15), 143, "stopped and saved"),
        (
            OSError(28, "No space left", "file"),
            1,
            "error: file: No space left; what was saved before is intact",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_code(error, code, words, capsys):
    with one_line_errors(LookupError) as outcome:
        raise error
    printed = capsys.readouterr().err
    assert outcome.code == code and words in printed and len(printed.splitlines()) == 1


def test_what_goes_well_is_code_0_and_a_fault_stays_a_traceback():
    with one_line_errors() as outcome:
        pass
    assert outcome.code == 0
    for fault in (RuntimeError("connection"), LookupError()):
        with pytest.raises(type(fault)), one_line_errors():
            raise fault


class Full(io.StringIO):
    """A stream that cannot be written to its end."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def flush(self):
        raise self.error


@pytest.mark.parametrize(
    "error, code, words",
    [
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (OSError(28, "No space left on device"), 1, "error: the output: No space left on device\n"),
    ],
)
def test_output_that_cannot_be_written_is_told_once_and_a_closed_pipe_never(
    monkeypatch, capsys, error, code, words
):
    monkeypatch.setattr(sys, "stdout", Full(error))
    with one_line_errors() as outcome:
        print("text")
    assert (outcome.code, capsys.readouterr().err) == (code, words)


def test_characters_that_the_output_lacks_are_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1251"))
    with one_line_errors() as outcome:
        print("32×32 猫 \udcff")
    assert outcome.code == 0 and raw.getvalue() == b"32\\xd732 \\u732b \\udcff\n".replace(
        b"\n", os.linesep.encode()
    )
