"""What was changed about a run's order of tokens on the way: an append-only list, in amendments.json."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from llama_foundation.errors import ConfigError
from llama_foundation.files import publish_json

AMENDMENTS = "amendments.json"


@dataclass(frozen=True)
class Amendment:
    """From step `at_step` (counted from 0) on, the batches are those `jump` batches further: a spike jumped over."""

    at_step: int
    jump: int

    def __post_init__(self) -> None:
        for name, least in (("at_step", 0), ("jump", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(f"amendment {self}: {name} must be a whole number of at least {least}")


def read_amendments(run_directory: Path) -> tuple[Amendment, ...]:
    """Return the amendments of a run, in the order they were made; none where it has no such file.

    Raises:
        ConfigError: the file is not a list of amendments.
    """
    path = run_directory / AMENDMENTS
    if not path.exists():
        return ()
    try:
        return tuple(Amendment(**amendment) for amendment in json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f'{path}: not a list of amendments ({error}); an amendment is {{"at_step": 100, "jump": 3}}'
        ) from error


def append_amendment(run_directory: Path, amendment: Amendment) -> tuple[Amendment, ...]:
    """Write `amendment` behind those that the run has; return all of them. Rank 0 of a run calls it.

    Raises:
        OSError: the file cannot be written.
    """
    amendments = (*read_amendments(run_directory), amendment)
    publish_json(run_directory / AMENDMENTS, [asdict(each) for each in amendments])
    return amendments
