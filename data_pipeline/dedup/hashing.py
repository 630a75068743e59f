"""64-bit arithmetic that all kernels share: numbers wrap around, as unsigned integers do."""

import numba
import numpy as np
import pyarrow as pa

_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)

WORD_START = np.uint64(0xCBF29CE484222325)
WORD_FACTOR = np.uint64(0x9FB21C651E98DF25)
_32 = np.uint64(32)


@numba.njit(inline="always")
def mix(value: np.uint64) -> np.uint64:
    """Return a number of which every bit depends on every bit of `value` (splitmix64, Steele, Lea and Flood 2014)."""
    value = (value ^ (value >> _30)) * _FIRST
    value = (value ^ (value >> _27)) * _SECOND
    return value ^ (value >> _31)


@numba.njit(inline="always")
def next_mix(value: np.uint64) -> np.uint64:
    """Return `mix` of the next state of splitmix64, so that 0 is no fixed point."""
    return mix(value + _STEP)


@numba.njit(inline="always")
def add_character(hash_: np.uint64, code_point: int) -> np.uint64:
    """Return the hash of a word with one character more."""
    return (hash_ ^ np.uint64(code_point)) * WORD_FACTOR


@numba.njit(inline="always")
def end_word(hash_: np.uint64) -> np.uint64:
    """Return the finished hash: products carry upwards only, so the high half is folded into the low one."""
    return (hash_ ^ (hash_ >> _32)) * WORD_FACTOR


def random_numbers(seed: int, count: int) -> np.ndarray:
    """Return uint64 [count] that depend on nothing but the arguments, in any version of any library."""
    return mix_array(np.arange(1, count + 1).astype(np.uint64) * _STEP + np.array([seed], np.uint64) * WORD_FACTOR)


def mix_array(values: np.ndarray) -> np.ndarray:
    """Return `mix` of each of uint64 [values]."""
    return mix.py_func(values)


def text_buffers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the UTF-8 of a large_string array without a copy: uint8 [bytes] and int64 [texts + 1] offsets into it."""
    _, offsets, data = texts.buffers()
    starts = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8), starts


def id_halves(identifiers: pa.Array) -> np.ndarray:
    """Return uint64 [rows, 2] of a binary(16) array: its bytes as two little-endian numbers, without a copy."""
    data = np.frombuffer(identifiers.buffers()[1], np.uint64).reshape(-1, 2)
    return data[identifiers.offset : identifiers.offset + len(identifiers)]
