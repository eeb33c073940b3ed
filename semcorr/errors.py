"""The one exception a user is meant to read."""

from collections.abc import Iterable


class UserError(Exception):
    """Something the user can fix: the command line prints it without a traceback and exits with code 2.

    A message says where, what is wrong (expected and got), and what to do.
    """


def reason(error: Exception) -> str:
    """What a library's error says, on one line of at most 200 characters; its type where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def one_of(what: str, value: str, allowed: Iterable[str]) -> str:
    """Return `value` if it is allowed.

    Raises:
        UserError: it is not; the message lists what is.
    """
    if value not in allowed:
        raise UserError(f"{what}: {value!r}; allowed: {', '.join(allowed)}")
    return value
