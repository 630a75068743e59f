"""Errors a user can act on.

Every message names the setting or file, its value, what is allowed and what to do. Commands print the message
without a traceback and exit with `exit_code`. Broken invariants of our own are plain asserts instead.
"""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something outside the program is wrong, and the message says how to mend it."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, has a bad value, or contradicts another one."""


class DataError(UserError):
    """An input document, a shard or a tokenizer file is missing, damaged or of the wrong kind."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, incomplete or belongs to another model or run."""


class RunError(UserError):
    """A run cannot go on: its directory is in use, one of its ranks died, or a machine is not fit."""

    exit_code = 3


class NumbersError(RunError):
    """The numbers of a run are bad, and the same command on the same data would come to them again."""

    exit_code = 4


def exit_status(program: Callable[[], int | None]) -> int:
    """Run `program` and return its exit status; of a user error the message is printed, and its own status returned."""
    try:
        return program() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
