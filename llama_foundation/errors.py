"""Errors a user can act on.

Every message names the setting or file, its value, what is allowed and what to do. Commands print the message
without a traceback and exit with `exit_code`. Broken invariants of our own are plain asserts instead.
"""


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
    """A run cannot go on: its directory is in use, its numbers are not finite, or one of its ranks died."""

    exit_code = 3
