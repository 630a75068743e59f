"""Tensors in the .pth files of torch.save: read without running code, written without holding them.

Such a file is a zip archive: `data.pkl`, a pickle that names the tensors, and one uncompressed entry per storage. The
pickle is read by torch's weights-only loader, after its classes have been compared with a fixed list, whatever else
somebody has allowed that loader.
"""

import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from llama_foundation.errors import CheckpointError
from llama_train.checkpoint.huggingface_files import OutputTensor, flush
from llama_train.checkpoint.index import DTYPES, TensorEntry

ALLOWED = frozenset(
    [
        "collections.OrderedDict",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor_v2",
        "torch.BFloat16Storage",
        "torch.DoubleStorage",
        "torch.FloatStorage",
        "torch.HalfStorage",
    ]
)
"""The only classes and functions a .pth file may name."""

_MOST_PICKLE_BYTES = 64 * 2**20  # names and shapes; those of a 405B model take 0.2 MiB
_MOST_ELEMENTS = 2**50
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip entry: the lengths of its name and of its extra field


class PickledTensors:
    """The tensors of one .pth file; their names, shapes and places are known, their bytes are read when asked for.

    torch.load could map the file itself, but privately, for which Linux wants as much memory as the file is large.

    Args:
        stand_ins: what else the file may name, each with something harmless that is called in its place.
        pick: returns the named tensors, where the file's dictionary holds other things as well.
        alone: the name for a tensor that the file may hold instead of a dictionary.

    Raises:
        CheckpointError: it is damaged, holds anything but named tensors, or names a class that is not allowed.
    """

    def __init__(
        self,
        path: Path,
        stand_ins: Mapping[str, Any] = MappingProxyType({}),
        pick: Callable[[dict[Any, Any]], dict[Any, Any]] = lambda value: value,
        alone: str | None = None,
    ) -> None:
        self.path = path
        self.tensors: dict[str, TensorEntry] = {}
        self._begin: dict[str, int] = {}
        sizes = _check_archive(path, ALLOWED | stand_ins.keys())
        for name, tensor in _picked(path, stand_ins, pick, alone).items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise CheckpointError(f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor")
            if tensor.dtype not in DTYPES.values() or not tensor.is_contiguous():
                raise CheckpointError(f"{path}: {name}: not a contiguous tensor of {', '.join(DTYPES)}")
            item = tensor.dtype.itemsize
            storage = tensor.untyped_storage()
            # numel() is of 64 bits, and sizes can be chosen so that it comes out small
            elements = math.prod(size for size in tensor.shape if size)
            if min((tensor.storage_offset(), *tensor.shape)) < 0 or elements > _MOST_ELEMENTS:
                raise CheckpointError(f"{path}: {name}: of shape {list(tensor.shape)} at {tensor.storage_offset()}")
            # where torch.load says, under FakeTensorMode, that the storage's bytes are
            begin = storage._checkpoint_offset
            self._begin[name] = begin + tensor.storage_offset() * item
            # the pickle says how large a storage is, and the archive; what is read must lie in the archive's
            held = min(storage.nbytes(), sizes.get(begin, 0)) - tensor.storage_offset() * item
            if math.prod(tensor.shape) * item > max(held, 0):
                raise CheckpointError(f"{path}: {name} is larger than its bytes in the file; truncated?")
            self.tensors[name] = TensorEntry(tensor.dtype, tuple(tensor.shape))

    def read(self, name: str, offsets: tuple[int, ...], lengths: tuple[int, ...]) -> torch.Tensor:
        """Return a copy of one rectangle of a tensor; only its pages are read."""
        entry = self.tensors[name]
        if 0 in entry.shape:
            return torch.empty(lengths, dtype=entry.dtype)
        integers = f"<i{entry.dtype.itemsize}"  # numpy has no bfloat16
        try:
            mapped = numpy.memmap(self.path, integers, mode="r", offset=self._begin[name], shape=entry.shape)
        except OSError as error:
            raise CheckpointError(f"{self.path}: {error.strerror}, reading {name}") from error
        part = numpy.array(mapped[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))], order="C")
        return torch.from_numpy(part).view(entry.dtype)


def _picked(
    path: Path, stand_ins: Mapping[str, Any], pick: Callable[[dict[Any, Any]], dict[Any, Any]], alone: str | None
) -> dict[Any, Any]:
    value = _described(path, stand_ins, alone)
    try:
        return pick(value)
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not laid out as it should be: {type(error).__name__}: {error}") from error


def _described(path: Path, stand_ins: Mapping[str, Any], alone: str | None) -> dict[Any, Any]:
    """Run the weights-only loader with tensors that have no memory."""
    with FakeTensorMode(), torch.serialization.safe_globals([(made, name) for name, made in stand_ins.items()]):
        value = _loaded(path)
    if alone is not None and isinstance(value, torch.Tensor):
        return {alone: value}
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not a dictionary of tensors")
    return value


_UNREADABLE = (
    *(OSError, RuntimeError, ValueError, TypeError, EOFError, LookupError, AttributeError, OverflowError),
    *(AssertionError, struct.error, pickle.UnpicklingError),
)
"""What torch's loader ends with, depending on where a file is damaged."""


def _loaded(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{path}: damaged or not readable: {(str(error) or repr(error)).splitlines()[0]}"
        ) from error


def pickled_number(path: Path) -> float:
    """Return the number in a .pth file that holds nothing else, as a number or as a tensor.

    Raises:
        CheckpointError: it is damaged, holds anything else, or names a class that is not allowed.
    """
    _check_archive(path, ALLOWED)
    value = _loaded(path)
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, int | float) or not abs(value) < 2**53:
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not a number")
    return float(value)


def write_pth(path: Path, tensors: list[OutputTensor], wrote: Callable[[int], None]) -> None:
    """Write tensors as torch.save would, holding one part of one tensor at a time.

    torch.save lays the file out for tensors that have no memory; their bytes are then written into its holes. The zip
    archive's own checksums of the storages stay zero, which torch.load does not look at.
    """
    with FakeTensorMode():
        empty = {tensor.name: torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in tensors}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(empty, path)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        root = entries[0].filename.partition("/")[0]
        # torch.save numbers the storages in the order of the dictionary
        storages = [archive.getinfo(f"{root}/data/{number}") for number in range(len(tensors))]
    with open(path, "r+b") as file:
        for tensor, storage in zip(tensors, storages, strict=True):
            assert storage.file_size == tensor.bytes and storage.compress_type == zipfile.ZIP_STORED, tensor.name
            file.seek(_data_offset(file, storage))
            tensor.write(file, wrote)
        flush(file)


def _data_offset(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    file.seek(entry.header_offset)
    name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return entry.header_offset + _LOCAL_HEADER.size + name + extra


def _check_archive(path: Path, allowed: Set[str]) -> dict[int, int]:
    """Look through the pickle, without running it, for every class and function that it names.

    Returns:
        Where in the file each entry of the archive begins, and how many bytes it has.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # torch finds entries whatever the case of their names, so that two could be meant by one
            entries = {entry.filename.lower(): entry for entry in archive.infolist()}
            if len(entries) != len(archive.infolist()):
                raise CheckpointError(f"{path}: has an entry twice, so that it is not known which would be read")
            pickles = [entry for name, entry in entries.items() if name.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > _MOST_PICKLE_BYTES:
                raise CheckpointError(f"{path}: {len(pickles)} data.pkl; it must have one, of at most 64 MiB")
            for entry in entries.values():  # small ones could unpack to anything; torch packs none
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                    raise CheckpointError(f"{path}: {entry.filename} is compressed, which torch.save never does")
            data = archive.read(pickles[0])
            with open(path, "rb") as file:
                sizes = {_data_offset(file, entry): entry.file_size for entry in entries.values()}
            order = entries.get(pickles[0].filename.lower().removesuffix("data.pkl") + "byteorder")
            if order is not None and (order.file_size > 8 or archive.read(order) != b"little"):
                raise CheckpointError(f"{path}: not little-endian; only that is read")
        for operation, argument, _ in pickletools.genops(data):
            if operation.name in ("GLOBAL", "INST"):
                named = str(argument).replace(" ", ".")
                if named not in allowed:
                    raise CheckpointError(
                        f"{path}: names {named}, which is no tensor: loading it could run code, so it is refused. "
                        "Only weights are read; save them anew, where you trust the file, as a dictionary of tensors"
                    )
            elif operation.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
                raise CheckpointError(f"{path}: names classes in a way ({operation.name}) that torch.save does not")
        size = path.stat().st_size
        if any(begin + held > size for begin, held in sizes.items()):
            raise CheckpointError(f"{path}: truncated: an entry of its archive ends behind it")
        return sizes
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        ValueError,
        EOFError,
        LookupError,
        struct.error,
    ) as error:
        raise CheckpointError(
            f"{path}: truncated, or not a .pth file in the zip form of torch 1.6 or later: {error}"
        ) from error
