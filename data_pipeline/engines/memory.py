"""Keep the memory that a worker will ask for again.

The C library gives every block above 32 MiB a mapping of its own and returns it when it is freed, and freed memory at
the end of the heap soon too. Filters ask for such arrays again for each slice of text, and the kernel then clears every
page anew: for one document of 10 MB that was a fifth of all CPU time. So large blocks come from the heap, whose free
end is returned above `KEPT_BYTES` only.
"""

import ctypes
from functools import lru_cache

KEPT_BYTES = 256 * 1024 * 1024
"""Free memory at the end of the heap that a worker keeps, at most."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Names of malloc.h (glibc); mallopt(3)."""


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """From now on let this process keep freed memory; without effect where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
