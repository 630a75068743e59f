"""Writing the index: every rank reports what it wrote, rank 0 puts the reports together.

A report is three lines of JSON. The first says how it went. The second names the tensors, and most ranks have the same
ones: rank 0 reads it once for all ranks whose line is the same. The third is the rank's part of the index.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from llama_foundation.errors import CheckpointError
from llama_foundation.files import checksum
from llama_train.checkpoint.index import FORMAT, VERSION, aligned
from llama_train.engine.engine import Chunk


@dataclass
class RankReport:
    """What one rank has written to its file, chunk after chunk."""

    bytes: int = 0  # so far
    names: dict[str, tuple[str, list[int]]] = field(default_factory=dict)  # dtype and shape of each tensor
    tensors: list[int] = field(default_factory=list)  # of each chunk: the number of its tensor in `names`
    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    checksums: list[str] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict, repr=False)

    def add(self, chunk: Chunk, size: int, digests: list[str]) -> None:
        """Take down that `chunk`, of `size` bytes, lies at the next aligned byte."""
        if chunk.name not in self.names:
            self._numbers[chunk.name] = len(self.names)
            self.names[chunk.name] = (str(chunk.tensor.dtype).removeprefix("torch."), list(chunk.shape))
        self.tensors.append(self._numbers[chunk.name])
        self.offsets += chunk.offsets
        self.lengths += chunk.tensor.shape
        self.checksums += digests
        self.bytes = aligned(self.bytes) + size

    def encode(self) -> bytes:
        columns = {
            "bytes": self.bytes,
            "tensors": self.tensors,
            "offsets": self.offsets,
            "lengths": self.lengths,
            "checksums": "".join(self.checksums),
        }
        return b"\n".join([_json({"bytes": self.bytes}), _json(self.names), _json(columns)])


def failure(message: str) -> bytes:
    """Return the report of a rank that could not write."""
    return _json({"error": message})


def outcome(report: bytes) -> dict[str, Any]:
    """Return how it went: `bytes`, the size of the rank's file, or `error`."""
    return json.loads(report.partition(b"\n")[0])


def encode_index(
    step: int, block_bytes: int, reports: list[bytes], files: dict[str, list[Any]], state: dict[str, Any]
) -> bytes:
    """Merge the encoded reports of all ranks into the bytes of an index.

    Args:
        files: name → [size, checksum].

    Raises:
        CheckpointError: two ranks disagree about a tensor.
    """
    tensors: dict[str, list[Any]] = {}
    numbers: dict[str, int] = {}
    renumberings: dict[bytes, list[int]] = {}
    ranks = []
    for rank, report in enumerate(reports):
        _, names, columns = report.split(b"\n")
        if names not in renumberings:
            renumberings[names] = _renumbering(rank, json.loads(names), tensors, numbers)
        part = json.loads(columns)
        renumbering = renumberings[names]
        part["tensors"] = [renumbering[number] for number in part["tensors"]]
        ranks.append(part)
    return seal(
        _json(
            {
                "format": FORMAT,
                "version": VERSION,
                "step": step,
                "block_bytes": block_bytes,
                "files": files,
                "tensors": {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in tensors.items()},
                "ranks": ranks,
                "state": state,
            }
        )
    )


def _renumbering(
    rank: int, names: dict[str, list[Any]], tensors: dict[str, list[Any]], numbers: dict[str, int]
) -> list[int]:
    """Return the numbers in the index of a rank's tensors, which are added to `tensors` and `numbers`."""
    for name, entry in names.items():
        known = tensors.setdefault(name, entry)
        numbers.setdefault(name, len(numbers))
        if known != entry:
            raise CheckpointError(
                f"{name}: rank {rank} says {entry[0]} {entry[1]}, another rank {known[0]} {known[1]}; all ranks must "
                "run one model in one precision"
            )
    return [numbers[name] for name in names]


def seal(body: bytes) -> bytes:
    """Put the checksum line before the JSON object `body`."""
    rest = b"\n" + body[1:]
    return b'{"checksum":"' + checksum(rest).encode() + b'",' + rest


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
