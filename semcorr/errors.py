"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can fix: the command line prints it without a traceback and exits with code 2.

    A message says where, what is wrong (expected and got), and what to do.
    """
