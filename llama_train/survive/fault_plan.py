"""What may be broken on purpose, by whom and when: `+fault.kill=rank2@step7`.

A plan is parsed where the configuration is checked, so it imports nothing heavy; `faults.py` carries it out.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches

from llama_foundation.errors import ConfigError

KINDS: dict[str, tuple[str, float | None]] = {
    "kill": ("the process kills itself with SIGKILL before the step", None),
    "hang": ("the main thread stands still before the step, for ever", None),
    "slow": ("every step from this one on takes that many seconds longer on this rank", 0.5),
    "nan_gradient": ("one element of this rank's gradients becomes NaN before the update", None),
    "bit_flip": ("one bit of this rank's weights is flipped before the step: bit 0 is the lowest", 22.0),
    "torn_checkpoint": ("this rank's file of the checkpoint after the step is cut to half once it is published", None),
    "deleted_rank_file": ("this rank's file of the checkpoint after the step is deleted once it is published", None),
    "disk_full": ("this rank's disk takes no more while the checkpoint after the step is written", None),
    "sigterm_storm": ("the process gets that many SIGTERM before the step", 20.0),
    "clock_jump": ("this rank's wall clock is that many seconds ahead from the step on", 3600.0),
}
"""Kind → what happens, and the number behind the colon where none is given; None: it takes no number."""

AFTER_A_CHECKPOINT = ("torn_checkpoint", "deleted_rank_file", "disk_full")
"""Kinds that wait for the first checkpoint at or after their step."""

_PLACE = re.compile(r"rank(\d{1,7})@step(\d{1,12})(?::(\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Fault:
    """One fault: `kind` of `KINDS`, on `rank`, in step `step` counted as in metrics.jsonl (the first is 1)."""

    kind: str
    rank: int
    step: int
    value: float | None = None

    def __str__(self) -> str:
        number = "" if self.value is None else f":{self.value:g}"
        return f"{self.kind}=rank{self.rank}@step{self.step}{number}"


def parse_faults(settings: dict[str, str]) -> tuple[Fault, ...]:
    """Return the faults that `fault.KIND=PLACES` asks for; PLACES are rankR@stepS or rankR@stepS:NUMBER, by spaces.

    Raises:
        ConfigError: an unknown kind or a malformed place.
    """
    faults = []
    for kind, places in settings.items():
        if kind not in KINDS:
            close = get_close_matches(kind, KINDS, 1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"fault.{kind}: there is no such fault{meant} Use one of {', '.join(KINDS)}")
        default = KINDS[kind][1]
        for place in places.split() or [""]:
            match = _PLACE.fullmatch(place)
            if match is None or int(match[2]) < 1 or (match[3] is not None and default is None):
                number = "" if default is None else f", or rank2@step7:{default:g} with a number: {KINDS[kind][0]}"
                raise ConfigError(
                    f"fault.{kind}={places}: {place!r} is not a rank and a step (from 1 on); use for example "
                    f"rank2@step7{number}; several are separated by spaces"
                )
            value = default if match[3] is None else float(match[3])
            if kind == "bit_flip" and (value != int(value) or value > 63):
                raise ConfigError(f"fault.bit_flip={places}: {match[3]} is no bit; use 0 to 31, in float64 to 63")
            faults.append(Fault(kind, int(match[1]), int(match[2]), value))
    return tuple(faults)
