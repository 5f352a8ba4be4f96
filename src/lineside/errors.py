"""The ways a verb can end badly: bad input (exit status 2), a failed check (1), too little data for a check (3)."""


class LinesideError(Exception):
    """Bad input or environment. The message says what was wrong, what was expected and what to do. Exit status 2."""

    exit_status = 2


class CheckFailed(LinesideError):
    """The input was fine and the check it asked for did not hold (validate, compare). Exit status 1."""

    exit_status = 1


class TooLittleData(LinesideError):
    """The input was fine, but too little to say whether the check holds (compare). Exit status 3."""

    exit_status = 3
