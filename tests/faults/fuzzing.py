"""Bytes and values changed at random, and what a reader may answer to them.

Few examples by default; with `--hypothesis-profile=long` (`make fuzz`) many.
"""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from llama_foundation.errors import UserError

FEW = settings(
    max_examples=max(settings().max_examples // 4, 1),  # 25 without a profile
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink what fails can take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

EVIL = st.sampled_from(
    [
        *(None, True, -1, 0, 1, 2**31, 2**53, 2**63, 2**64, 10**400, 1e308, float("nan"), float("inf")),
        *("", "..", "../../etc/passwd", "/etc/passwd", "a\0b", "\ud800", "${oc.env:HOME}", "\\..\\x", "x" * 5000),
        *([], {}, [[]], {"": None}, [0] * 2000),
    ]
)
"""What a careless reader falls over."""

_MORE_MEMORY = 4 * 2**30  # bytes that a reader may ask for on top of what the process has


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """Within it, a size that a file claims and does not have is no size to ask for: MemoryError."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MORE_MEMORY, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def _copied(value: Any) -> Any:
    """Copy the containers, keep the leaves: tensors are some."""
    if isinstance(value, dict):
        return type(value)((key, _copied(inner)) for key, inner in value.items())
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """`value` with one or two places somewhere inside replaced, removed or doubled."""
    value = _copied(value)
    for _ in range(draw(st.integers(1, 2))):
        here, key = {"": value}, ""
        while isinstance(here[key], (dict, list)) and here[key] and draw(st.integers(0, 4)):
            here = here[key]
            key = draw(st.sampled_from(list(here) if isinstance(here, dict) else range(len(here))))
        match draw(st.integers(0, 3)):
            case 0 if key != "":
                del here[key]
            case 1 if isinstance(here, list):
                here.insert(key, here[key])
            case 2 if isinstance(here, dict) and key != "":
                here[draw(st.text(max_size=5))] = here[key]
            case _:
                here[key] = draw(EVIL)
                if key == "":
                    value = here[key]
                    break
    return value


@st.composite
def changed_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` cut, stretched, or with some bytes replaced."""
    result = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(result) - 1, 0)))
        match draw(st.integers(0, 3)):
            case 0:
                del result[at:]
            case 1:
                del result[at : at + draw(st.integers(1, 16))]
            case 2:
                result[at:at] = draw(st.binary(min_size=1, max_size=16))
            case _:
                new = draw(st.binary(min_size=1, max_size=8))
                result[at : at + len(new)] = new
    return bytes(result)


def refusal(kind: type[UserError] | tuple[type[UserError], ...], read_it: Callable[[], object]) -> str | None:
    """Return the error of `kind` that reading ends with, None if it is read; any other exception is a bug."""
    try:
        read_it()
    except kind as error:
        return str(error)
    return None
