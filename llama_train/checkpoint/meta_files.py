"""Reading a model as Meta publishes it: params.json and one consolidated.NN.pth for each rank of model parallelism."""

import logging
import re
from pathlib import Path
from typing import Any

import torch

from llama_foundation.errors import CheckpointError
from llama_train.checkpoint.collective import Answer, Group, asked_together
from llama_train.checkpoint.huggingface_files import TOKENIZER_FILES, json_object
from llama_train.checkpoint.index import DTYPES, TensorEntry
from llama_train.checkpoint.meta_config import from_params
from llama_train.checkpoint.meta_layout import (
    EMBEDDING,
    FIRST_GATE,
    FIRST_KEYS,
    IGNORED,
    OUTPUT,
    halves_from_pairs,
    is_key_or_value,
    is_rotary,
    meta_names,
)
from llama_train.checkpoint.pth import PickledTensors
from llama_train.checkpoint.restore import WEIGHTS, pieces
from llama_train.config import ModelConfig

PARAMS = "params.json"

_CONSOLIDATED = re.compile(r"consolidated\.(\d+)\.pth")
_COMPARED_BYTES = 16 * 2**20
_log = logging.getLogger(__name__)


def is_meta(path: Path) -> bool:
    """Whether `path` looks like a directory in Meta's format."""
    return (path / PARAMS).is_file() and any(path.glob("consolidated.*"))


class MetaDirectory:
    """The weights of Meta's files, merged, in our order and under our names, read when asked for.

    With a group, all of its ranks make one each; rank 0 looks into the files and tells the others. The .pth files carry
    no checksums that could be verified piece by piece.

    Llama 3.1 405B for 16 files has each of its 8 key/value heads twice, once for each of two ranks; they are read once
    and must be the same. An output matrix that equals the embedding is read as tied embeddings.

    Args:
        context: of the model in tokens, which the files do not say; None: see `from_params`.

    Raises:
        CheckpointError: a file is missing or damaged, names a class that is no tensor, or does not fit the others.
    """

    def __init__(self, directory: Path, group: Group = None, context: int | None = None) -> None:
        self.directory = directory
        self.group = group
        self._files: list[PickledTensors] = []
        self._shards: dict[str, list[TensorEntry]] = {}
        message, _ = asked_together(self._look, group)
        self._shards = {
            name: [TensorEntry(DTYPES[dtype], tuple(shape)) for dtype, shape in shards]
            for name, shards in message["tensors"].items()
        }
        params = message["params"]
        self._embedding_axis = self._find_embedding_axis(params)
        vocabulary = self._whole(EMBEDDING, self._embedding_axis)[0]
        self._config = from_params(params, directory / PARAMS, vocabulary, message["tied"], context)
        self._copies = message["copies"]
        self._config.kv_heads //= self._copies if message["copies_counted"] else 1
        self.tensors: dict[str, TensorEntry] = {}
        self._stored: dict[str, tuple[str, int | None]] = {}
        self._describe_tensors()

    def read(self, name: str, offsets: tuple[int, ...], lengths: tuple[int, ...]) -> torch.Tensor:
        """Return one rectangle of a tensor."""
        ours = name.removeprefix(WEIGHTS)
        if not (is_rotary(ours) or (self._copies > 1 and is_key_or_value(ours))):
            return self._read_stored(name, offsets, lengths)
        head_dim = self._config.head_dim
        first, past = offsets[0] // head_dim, -(-(offsets[0] + lengths[0]) // head_dim)
        heads = self._read_heads(name, first, past, offsets[1], lengths[1])
        if is_rotary(ours):
            heads = halves_from_pairs(heads, head_dim)
        begin = offsets[0] - first * head_dim
        return heads[begin : begin + lengths[0]]

    def model_config(self) -> ModelConfig:
        """Return the model that params.json and the weights describe."""
        return self._config

    def tokenizer_files(self) -> dict[str, Path]:
        """Return the tokenizer's files by name; Llama 1 and 2 keep them one directory above the sizes."""
        for directory in (self.directory, self.directory.absolute().parent):
            found = {name: directory / name for name in TOKENIZER_FILES if (directory / name).is_file()}
            if {"tokenizer.model", "tokenizer.json"} & found.keys():
                return found
        return {}

    def _look(self) -> Answer:
        """On rank 0: read what the files hold, but for the weights themselves."""
        params = json_object(self.directory / PARAMS)
        self._open_files()
        for file in self._files:
            names = {name for name in file.tensors if name != IGNORED}
            first = self._shards.keys() or names
            if names != first:
                name = min(names ^ first)
                raise CheckpointError(f"{file.path}: {name} is not in every consolidated file; from another model?")
            for name in sorted(names):
                self._shards.setdefault(name, []).append(file.tensors[name])
        for name in (EMBEDDING, FIRST_KEYS, FIRST_GATE):
            if any(len(shard.shape) != 2 for shard in self._shards.get(name, [])) or name not in self._shards:
                raise CheckpointError(f"{self._files[0].path}: {name} is missing or no matrix; this is no Llama")
        message: dict[str, Any] = {
            "params": params,
            "tensors": {
                name: [(str(shard.dtype).removeprefix("torch."), shard.shape) for shard in shards]
                for name, shards in self._shards.items()
            },
            "tied": self._is_tied(),
        }
        return message | self._find_copies(params), b""

    def _open_files(self) -> None:
        numbered = {
            int(match[1]): path for path in self.directory.iterdir() if (match := _CONSOLIDATED.fullmatch(path.name))
        }
        for number in range(max(numbered, default=0) + 1):
            if number not in numbered:
                raise CheckpointError(
                    f"{self.directory / f'consolidated.{number:02d}.pth'}: missing; the model is incomplete"
                )
        self._files = [PickledTensors(numbered[number]) for number in sorted(numbered)]

    def _is_tied(self) -> bool:
        if OUTPUT not in self._shards:
            return True
        output = [shard.shape for shard in self._shards[OUTPUT]]
        if output != [shard.shape for shard in self._shards[EMBEDDING]]:
            return False
        return all(
            torch.equal(file.read(OUTPUT, *rectangle), file.read(EMBEDDING, *rectangle))
            for file in self._files
            for rectangle in pieces(file.tensors[OUTPUT], _COMPARED_BYTES)
        )

    def _find_embedding_axis(self, params: dict[str, Any]) -> int:
        """Llama 1 and 2 split the embedding by columns, Llama 3 by rows; nothing but the shapes says which."""
        columns = [shard.shape[1] for shard in self._shards[EMBEDDING]]
        return 1 if len(columns) > 1 and sum(columns) == params.get("dim") else 0

    def _find_copies(self, params: dict[str, Any]) -> dict[str, Any]:
        """How often each key/value head is stored, and whether params.json counts the copies as heads."""
        heads, hidden = params.get("n_heads"), params.get("dim")
        declared = params.get("n_kv_heads") or heads
        sizes = (heads, hidden, declared)
        if not all(type(size) is int and size > 0 for size in sizes) or hidden % heads:
            return {"copies": 1, "copies_counted": False}  # refused by from_params, by name
        stored = self._whole(FIRST_KEYS, 0)[0] // (hidden // heads)
        if stored > declared and stored % declared == 0:
            return {"copies": stored // declared, "copies_counted": False}
        if len(self._files) == declared == stored and declared % 2 == 0 and self._all_in_pairs():
            return {"copies": 2, "copies_counted": True}
        return {"copies": 1, "copies_counted": False}

    def _all_in_pairs(self) -> bool:
        names = [name for name in self._shards if name.endswith(("attention.wk.weight", "attention.wv.weight"))]
        return all(
            torch.equal(first.read(name, *rectangle), second.read(name, *rectangle))
            for name in names
            for first, second in zip(self._files[::2], self._files[1::2], strict=True)
            for rectangle in pieces(first.tensors[name], _COMPARED_BYTES)
        )

    def _describe_tensors(self) -> None:
        known = {OUTPUT} if self._config.tied_embeddings else set()
        for theirs, ours, axis in meta_names(self._config):
            known.add(theirs)
            if theirs not in self._shards:
                continue  # named by whoever compares with the model
            shards = self._shards[theirs]
            if (
                theirs == EMBEDDING
                and shards[0].shape[1] * len(shards) == self._config.hidden_size > shards[0].shape[1]
            ):
                axis = 1
            shape = list(self._whole(theirs, axis))
            if is_key_or_value(ours):
                shape[0] //= self._copies
            self.tensors[WEIGHTS + ours] = TensorEntry(shards[0].dtype, tuple(shape))
            self._stored[WEIGHTS + ours] = (theirs, axis)
        unknown = sorted(self._shards.keys() - known)
        if unknown:
            raise CheckpointError(f"{self.directory}: {unknown[0]} is in the files and not in a Llama")

    def _whole(self, name: str, axis: int | None) -> tuple[int, ...]:
        """The shape of a tensor of which each file holds a part along `axis`."""
        shards = self._shards[name]
        shape = list(shards[0].shape)
        for shard in shards[1:]:
            same = shard.dtype == shards[0].dtype and len(shard.shape) == len(shape)
            if not same or any(a != b for i, (a, b) in enumerate(zip(shape, shard.shape, strict=True)) if i != axis):
                raise CheckpointError(f"{self.directory}: {name} differs in dtype or shape between the files")
            if axis is not None:
                shape[axis] += shard.shape[axis]
        return tuple(shape)

    def _read_heads(self, name: str, first: int, past: int, column: int, columns: int) -> torch.Tensor:
        """Read whole key, value or query heads, each once."""
        size = self._config.head_dim
        copies = self._copies if is_key_or_value(name) else 1
        if copies == 1:
            return self._read_stored(name, (first * size, column), ((past - first) * size, columns))
        heads = []
        for head in range(first, past):
            stored = self._read_stored(name, (head * copies * size, column), (copies * size, columns))
            head_rows = stored[:size]
            if not all(torch.equal(head_rows, other) for other in stored.split(size)):
                raise CheckpointError(
                    f"{self.directory}: {self._stored[name][0]}: the {copies} copies of key/value head {head} differ; "
                    "n_kv_heads in params.json does not fit the files"
                )
            heads.append(head_rows)
        return torch.cat(heads)

    def _read_stored(self, name: str, offsets: tuple[int, ...], lengths: tuple[int, ...]) -> torch.Tensor:
        """Read a rectangle of a merged tensor, its rows in the order of the files."""
        if not self._files:
            self._open_files()  # on the ranks that were told
        theirs, axis = self._stored[name]
        if axis is None:
            return self._read_replicated(theirs, offsets, lengths)
        result = torch.empty(lengths, dtype=self.tensors[name].dtype)
        begin = 0
        for file in self._files:
            size = file.tensors[theirs].shape[axis]
            low, high = max(offsets[axis], begin), min(offsets[axis] + lengths[axis], begin + size)
            if low < high:
                inside = _with(offsets, axis, low - begin), _with(lengths, axis, high - low)
                result.narrow(axis, low - offsets[axis], high - low).copy_(file.read(theirs, *inside))
            begin += size
        return result

    def _read_replicated(self, theirs: str, offsets: tuple[int, ...], lengths: tuple[int, ...]) -> torch.Tensor:
        first, *others = (file.read(theirs, offsets, lengths) for file in self._files)
        if not all(torch.equal(first, other) for other in others):
            _log.warning("%s: %s differs between the files; that of the first is taken", self.directory, theirs)
        return first.clone()


def _with(sizes: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*sizes[:axis], size, *sizes[axis + 1 :])
