"""The two ways a verb can end badly: the input is wrong (exit status 2), or a check failed (exit status 1)."""


class LinesideError(Exception):
    """Bad input or environment. The message says what was wrong, what was expected and what to do. Exit status 2."""

    exit_status = 2


class CheckFailed(LinesideError):
    """The input was fine and the check it asked for did not hold (validate, compare). Exit status 1."""

    exit_status = 1
