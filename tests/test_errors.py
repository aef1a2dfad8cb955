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
