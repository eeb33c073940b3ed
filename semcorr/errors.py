"""The one exception a user is meant to read."""

from collections.abc import Iterable


class UserError(Exception):
    """Something the user can fix: the command line prints it without a traceback and exits with code 2.

    Its message says where, what is wrong (expected and given), and what to do.
    """


def reason(error: Exception) -> str:
    """A library's error message as one line of at most 200 characters; the error's type if it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def one_of(what: str, value: str, allowed: Iterable[str]) -> str:
    """Return `value` if it is allowed.

    Raises:
        UserError: it is not; the message lists the allowed values.
    """
    if value not in allowed:
        raise UserError(f"{what}: {value!r}; allowed: {', '.join(allowed)}")
    return value
