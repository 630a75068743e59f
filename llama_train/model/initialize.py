"""Initial weights, made from (seed, canonical name, global element index) alone.

Any rectangle of any tensor can be made by itself, so a rank makes only its slice and every layout starts from the same
bits. Element i of a tensor is output i of the SplitMix64 generator (Steele, Lea and Flood 2014, "Fast splittable
pseudorandom number generators", figure 15) whose state starts at a hash of the seed and the name; SplitMix64 adds a
constant to its state for every output, so that any output is found without those before it.
"""

import hashlib
import math

import torch
from torch import nn

from llama_train.config import ModelConfig
from llama_train.model.names import canonical_parameters, is_norm, parameter_shapes

TRUNCATION = 3.0
"""No initial weight is further from 0 than this many standard deviations of the normal before the cut."""

_PIECE = 1 << 16  # elements made at once: their int64 and float64 values stay in a core's cache


def initial_values(
    seed: int,
    name: str,
    shape: tuple[int, ...],
    offsets: tuple[int, ...],
    lengths: tuple[int, ...],
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Make one rectangle of a parameter's initial values, on the CPU.

    Norms are 1. Everything else is normal with mean 0 and standard deviation `standard_deviation(name, config)`, cut
    at `TRUNCATION` of them.

    Args:
        name: canonical name.
        shape: of the whole tensor, of one or two dimensions.
        offsets, lengths: where the rectangle starts in each dimension, and how long it is.
        dtype: of the result. Values are rounded to float32 first: a float64 model starts at the same point.
    """
    assert len(shape) == len(offsets) == len(lengths) <= 2, (name, shape, offsets, lengths)
    assert all(o >= 0 and o + n <= s for s, o, n in zip(shape, offsets, lengths, strict=True)), (name, offsets, lengths)
    if is_norm(name):
        return torch.ones(tuple(lengths), dtype=dtype)
    values = torch.empty(tuple(lengths), dtype=dtype)
    key, deviation = _key(seed, name), standard_deviation(name, config)
    width = shape[-1]
    first_row, first_column = (0, *offsets)[-2:]
    rows, columns = (1, *lengths)[-2:]
    table = values.view(rows, columns)
    columns_at_once = min(columns, _PIECE) or 1
    rows_at_once = _PIECE // columns_at_once
    for row in range(0, rows, rows_at_once):
        for column in range(0, columns, columns_at_once):
            piece = table[row : row + rows_at_once, column : column + columns_at_once]
            starts = torch.arange(piece.shape[0], dtype=torch.int64).add_(first_row + row).mul_(width)
            along = torch.arange(piece.shape[1], dtype=torch.int64).add_(first_column + column)
            piece.copy_(_truncated_normal(_splitmix64(key, starts[:, None] + along), deviation))
    return values


def standard_deviation(name: str, config: ModelConfig) -> float:
    """Return the standard deviation of a parameter's normal before the cut; the cut makes it 1.3 % smaller.

    What the layers add to the hidden state, o_proj and down_proj, is scaled by 1/√(2·layers), as in GPT-2 (Radford et
    al. 2019, section 2.3). No Llama paper says how its weights start: assumed.
    """
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return config.initial_std / math.sqrt(2 * config.layers)
    return config.initial_std


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter of a whole, unsharded model with its initial values."""
    shapes = parameter_shapes(config)
    for name, parameter in canonical_parameters(model):
        shape = shapes[name]
        assert tuple(parameter.shape) == shape, (name, parameter.shape, shape)
        parameter.copy_(initial_values(seed, name, shape, (0,) * len(shape), shape, config, parameter.dtype))


def _key(seed: int, name: str) -> int:
    """Hash a seed of any size and a name to 64 bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")


def _signed(bits: int) -> int:
    """Read 64 bits as the int64 that has them: torch has no arithmetic on unsigned integers."""
    return bits - (1 << 64) if bits >> 63 else bits


def _splitmix64(key: int, index: torch.Tensor) -> torch.Tensor:
    """Return output `index` (int64, counted from 0) of SplitMix64 seeded with `key`; works in place on `index`.

    Sums and products of int64 wrap around, as the generator's unsigned ones do.
    """
    bits = index.add_(1).mul_(_signed(0x9E3779B97F4A7C15)).add_(_signed(key))
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits.bitwise_xor_(_logical_right_shift(bits, shift)).mul_(_signed(multiplier))
    return bits.bitwise_xor_(_logical_right_shift(bits, 31))


def _logical_right_shift(bits: torch.Tensor, shift: int) -> torch.Tensor:
    # int64's own shift copies the sign bit into the places that fall free.
    return (bits >> shift).bitwise_and_((1 << (64 - shift)) - 1)


def _truncated_normal(bits: torch.Tensor, deviation: float) -> torch.Tensor:
    """Turn 64 random bits each into a float32 normal by the inverse of its distribution; works in place on `bits`."""
    # The high 53 bits as an odd multiple of 2^-53 in (-1, 1): exact in float64, and symmetric around 0.
    uniform = bits.bitwise_right_shift_(11).to(torch.float64).add_(0.5).mul_(2.0**-52)
    inside = math.erf(TRUNCATION / math.sqrt(2))  # the probability within the cut
    return uniform.mul_(inside).erfinv_().mul_(math.sqrt(2) * deviation).to(torch.float32)
