"""NCCL's flight recorder: the last collectives of a rank, with their sizes, places and whether they ended.

torch keeps it in a ring. Compared over the ranks it tells which collective one of them never entered. It is written as
JSON: torch's other form is a pickle.
"""

import os
import sys
from pathlib import Path

_ENTRIES = "2000"
"""Collectives that are kept: torch's own default where it keeps any, a few MB in memory."""


def keep_collectives() -> None:
    """Have NCCL's collectives recorded; before the process groups, which read the environment once."""
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"):  # the newer name, and torch 2.11's
        os.environ.setdefault(name, _ENTRIES)


def write_flight_record(path: Path) -> str | None:
    """Write the collectives that this process has recorded to `path`; return why not, or None.

    It raises nothing: it is called by a process that is about to say why it ends.
    """
    try:
        # Not imported here: a process that stands still must not begin to import, and without torch there is no record.
        dump = getattr(sys.modules.get("torch._C._distributed_c10d"), "_dump_nccl_trace_json", None)
        if dump is None:
            return "this torch is built without NCCL"
        record = dump(includeCollectives=True, onlyActive=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record if isinstance(record, bytes) else str(record).encode())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
