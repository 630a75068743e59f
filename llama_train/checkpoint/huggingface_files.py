"""Hugging Face model directories: reading safetensors in rectangles, writing them as a stream.

The format (huggingface.co/docs/safetensors): 8 bytes little-endian, the length of the header; the header, JSON: tensor
name → dtype, shape and byte range, padded with spaces; then the tensors' bytes.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from llama_foundation.errors import CheckpointError
from llama_train.checkpoint.collective import Answer, Group, asked_together
from llama_train.checkpoint.huggingface_config import from_huggingface
from llama_train.checkpoint.index import TensorEntry
from llama_train.checkpoint.restore import WEIGHTS, pieces
from llama_train.config import ModelConfig

CONFIG = "config.json"
SINGLE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_BUFFER = ".rotary_emb.inv_freq"  # saved by transformers before 4.32, computed from the configuration since
_HEAD, _EMBEDDING = WEIGHTS + "lm_head.weight", WEIGHTS + "model.embed_tokens.weight"


def is_huggingface(path: Path) -> bool:
    """Whether `path` looks like a Hugging Face model directory."""
    return (path / CONFIG).is_file()


class HuggingFaceDirectory:
    """The weights of a Hugging Face Llama, under our names, read when asked for.

    With a group, all of its ranks make one each; rank 0 looks into the files and tells the others.

    Unlike a checkpoint's own files these may be symbolic links: the Hugging Face cache is made of them. Safetensors
    carry no checksums; their headers are checked.

    Raises:
        CheckpointError: no Llama, pickled weights, or a missing or damaged file.
    """

    def __init__(self, directory: Path, group: Group = None) -> None:
        self.directory = directory
        self.group = group
        self.tensors: dict[str, TensorEntry] = {}
        self._files: dict[str, Path] = {}
        message, _ = asked_together(self._look, group)
        self._config = from_huggingface(message["config"], directory / CONFIG)
        for name, (dtype, shape, file) in message["tensors"].items():
            self.tensors[name] = TensorEntry(_DTYPES[dtype], tuple(shape))
            self._files[name] = directory / file

    def read(self, name: str, offsets: tuple[int, ...], lengths: tuple[int, ...]) -> torch.Tensor:
        """Return one rectangle of a tensor; only its bytes are read."""
        part = tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))
        with _opened(self._files[name]) as file:
            return file.get_slice(name.removeprefix(WEIGHTS))[part]

    def model_config(self) -> ModelConfig:
        """Return the model that config.json describes."""
        return self._config

    def tokenizer_files(self) -> dict[str, Path]:
        """Return the tokenizer's files by name."""
        found = {name: self.directory / name for name in TOKENIZER_FILES if (self.directory / name).is_file()}
        return found if {"tokenizer.model", "tokenizer.json"} & found.keys() else {}

    def _look(self) -> Answer:
        """On rank 0: read the headers of all files."""
        value = json_object(self.directory / CONFIG)
        tied = from_huggingface(value, self.directory / CONFIG).tied_embeddings
        for path in _weight_files(self.directory):
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    if not name.endswith(_BUFFER):
                        self._add(WEIGHTS + name, path, file.get_slice(name))
        if tied and _HEAD in self.tensors:
            self._drop_tied_head()
        tensors = {
            name: [_NAMES[entry.dtype], entry.shape, self._files[name].name] for name, entry in self.tensors.items()
        }
        return {"config": value, "tensors": tensors}, b""

    def _add(self, name: str, path: Path, stored: Any) -> None:
        dtype = _DTYPES.get(stored.get_dtype())
        if dtype is None:
            raise CheckpointError(
                f"{path}: {name.removeprefix(WEIGHTS)} is {stored.get_dtype()}; known: {', '.join(_DTYPES)}"
            )
        if name in self.tensors:
            raise CheckpointError(f"{path}: {name.removeprefix(WEIGHTS)} is also in {self._files[name].name}")
        self.tensors[name] = TensorEntry(dtype, tuple(stored.get_shape()))
        self._files[name] = path

    def _drop_tied_head(self) -> None:
        """Some writers store the tied matrix twice; it must then be the same."""
        head, embedding = self.tensors.pop(_HEAD), self.tensors.get(_EMBEDDING)
        if embedding is not None and not (
            head == embedding
            and all(
                torch.equal(self.read(_HEAD, *rectangle), self.read(_EMBEDDING, *rectangle))
                for rectangle in pieces(head)
            )
        ):
            raise CheckpointError(
                f"{self.directory / CONFIG}: tie_word_embeddings=true, but lm_head.weight differs from "
                "model.embed_tokens.weight; set it to false"
            )


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written: `parts` yields its values in row-major order, one piece after the other."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: Callable[[], Iterator[torch.Tensor]]

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def write(self, file: BinaryIO, wrote: Callable[[int], None]) -> None:
        """Write the values where `file` stands, holding one piece at a time; call `wrote` with bytes as they go out."""
        written = 0
        for part in self.parts():
            data = memoryview(part.to(self.dtype).contiguous().reshape(-1).view(torch.uint8).numpy())
            file.write(data)
            wrote(len(data))
            written += len(data)
            del part, data  # before the next one is read
        assert written == self.bytes, (self.name, written, self.bytes)


def plan_shards(tensors: list[OutputTensor], most_bytes: int) -> list[list[OutputTensor]]:
    """Group tensors, in order, into files of at most `most_bytes`; a larger tensor has a file of its own."""
    shards: list[list[OutputTensor]] = []
    size = 0
    for tensor in tensors:
        if not shards or size + tensor.bytes > most_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.bytes
    return shards


def write_shards(directory: Path, shards: list[list[OutputTensor]], wrote: Callable[[int], None]) -> None:
    """Write the planned files, and their index if there is more than one; call `wrote` with bytes as they go out."""
    if len(shards) == 1:
        write_safetensors(directory / SINGLE, shards[0], wrote)
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(directory / name, shard, wrote)
        weight_map |= {tensor.name: name for tensor in shard}
    total = sum(tensor.bytes for shard in shards for tensor in shard)
    write_json(directory / SHARD_INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_safetensors(path: Path, tensors: list[OutputTensor], wrote: Callable[[int], None]) -> None:
    """Write one safetensors file, holding one part of one tensor at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.bytes],
        }
        position += tensor.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            tensor.write(file, wrote)
        flush(file)


def write_json(path: Path, value: Any) -> None:
    """Write JSON and flush it to disk; the directory around it is what is published."""
    with open(path, "wb") as file:
        file.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
        flush(file)


def flush(file: BinaryIO) -> None:
    """Make what was written durable."""
    file.flush()
    os.fsync(file.fileno())


def _weight_files(directory: Path) -> list[Path]:
    if (directory / SHARD_INDEX).is_file():
        weight_map = json_object(directory / SHARD_INDEX).get("weight_map")
        names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
        for name in names:
            if "/" in name or not name.endswith(".safetensors"):
                raise CheckpointError(f"{directory / SHARD_INDEX}: weight_map names {name!r}, no safetensors file here")
    else:
        names = [SINGLE]
    missing = [directory / name for name in names if not (directory / name).is_file()]
    if names and not missing:
        return [directory / name for name in names]
    pickles = sorted(path.name for end in ("bin", "pt", "pth") for path in directory.glob(f"*.{end}"))
    if pickles and (not names or names == [SINGLE]):
        raise CheckpointError(
            f"{directory / pickles[0]}: a pickle, which can run code when it is loaded; only safetensors are read. "
            "Convert it where you trust it: transformers' save_pretrained writes safetensors"
        )
    raise CheckpointError(f"{(missing or [directory / SHARD_INDEX])[0]}: missing; the model is not complete")


def json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: it cannot be read, or is something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file: {error}") from error
