"""Reading checkpoints that DeepSpeed has written, native and universal: float32 master weights and AdamW's state.

    DIR/latest                               the name of the newest checkpoint, called TAG here
    DIR/TAG/*_model_states.pt                shapes of the parameters, group by group
    DIR/TAG/*zero_pp_rank_N_*optim_states.pt what rank N held of each group, flat (ZeRO 1, 2 and 3)
    DIR/TAG/zero/NAME/fp32.pt                one parameter (universal); exp_avg.pt, exp_avg_sq.pt, step.pt beside it
    DIR/TAG/zero/optimizer_state.pt          of ZeRO-3 (universal), instead of step.pt; its parameters are flat

None of it says how many heads the model has, so a Hugging Face config.json must lie in DIR or in DIR/TAG, as Hugging
Face's Trainer leaves it. DeepSpeed is not needed, and none of its classes is made: those that its pickles name are
listed here and replaced by empty ones.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from llama_foundation.errors import CheckpointError
from llama_train.checkpoint.collective import Group
from llama_train.checkpoint.huggingface_config import from_huggingface
from llama_train.checkpoint.huggingface_files import CONFIG, TOKENIZER_FILES, json_object
from llama_train.checkpoint.index import TensorEntry
from llama_train.checkpoint.pth import PickledTensors, pickled_number
from llama_train.checkpoint.restore import WEIGHTS
from llama_train.config import ModelConfig
from llama_train.model.names import parameter_shapes

_WRAPPERS = re.compile(
    r"^(module\.|_orig_mod\.|_forward_module\.)+|(?<=\.)_orig_mod\.|(?<=\.)_checkpoint_wrapped_module\."
)
_RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt$")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


_KINDS = {WEIGHTS: "fp32", "optimizer/exp_avg/": "exp_avg", "optimizer/exp_avg_sq/": "exp_avg_sq"}
"""What stands before the canonical name of a tensor, and what DeepSpeed calls it."""

_STEP = "step"


class _Nothing:
    """In place of an object that is not looked at."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass


class _Stage(int):
    """In place of DeepSpeed's enumeration of ZeRO stages."""


_STAND_INS: dict[str, Any] = {
    "torch.Size": torch.Size,
    "torch.Tensor": torch.Tensor,
    "torch._tensor._rebuild_from_type_v2": torch._tensor._rebuild_from_type_v2,  # tensors with attributes: ZeRO-3's
    "torch.nn.parameter.Parameter": torch.nn.Parameter,
    "deepspeed.runtime.zero.config.ZeroStageEnum": _Stage,
    "deepspeed.runtime.fp16.loss_scaler.LossScaler": _Nothing,
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler": _Nothing,
    "deepspeed.utils.tensor_fragment.fragment_address": _Nothing,
    "torch.BoolStorage": torch.BoolStorage,
    "torch.ByteStorage": torch.ByteStorage,
    "torch.IntStorage": torch.IntStorage,
    "torch.LongStorage": torch.LongStorage,
}


def is_deepspeed(path: Path) -> bool:
    """Whether `path` looks like a directory of DeepSpeed's, or one checkpoint in it."""
    return (path / "latest").is_file() or (path / "latest_universal").is_file() or _is_tag(path)


class DeepSpeedDirectory:
    """The tensors of a DeepSpeed checkpoint under our names, read when asked for. Pickles carry no checksums.

    `adamw_step` is how many updates its AdamW has done; None where it has no state, or that of another optimizer, and
    then there are weights only.

    Raises:
        CheckpointError: no checkpoint of ZeRO 1, 2 or 3 without tensor or pipeline parallelism, no config.json, a file
            is missing or damaged, or it names a class that is not expected.
    """

    def __init__(self, directory: Path, group: Group = None) -> None:
        self.directory = directory
        self.group = group
        tag = _find_tag(directory)
        self._home = next((place for place in (tag, tag.parent) if (place / CONFIG).is_file()), None)
        if self._home is None:
            raise CheckpointError(
                f"{tag}: DeepSpeed's files do not say which model this is; put the model's Hugging Face {CONFIG} there"
            )
        self._config = from_huggingface(json_object(self._home / CONFIG), self._home / CONFIG)
        self._parts: dict[str, _Parts] = {}
        steps: list[float | None] = []
        universal = (tag / "zero").is_dir()
        found = _universal(tag, steps, parameter_shapes(self._config)) if universal else _native(tag, steps)
        for kind, name, parts in found:
            self._parts[kind + _canonical(name)] = parts
        if self._config.tied_embeddings and WEIGHTS + _EMBEDDING in self._parts:
            for kind in _KINDS:
                self._parts.pop(kind + _HEAD, None)
        self.adamw_step = _one_step(tag, steps)
        if self.adamw_step is None:
            self._parts = {name: parts for name, parts in self._parts.items() if name.startswith(WEIGHTS)}
        self.tensors = {name: TensorEntry(torch.float32, parts.shape) for name, parts in self._parts.items()}

    def read(self, name: str, offsets: tuple[int, ...], lengths: tuple[int, ...]) -> torch.Tensor:
        """Return one rectangle of a tensor; of a matrix, its whole rows are read."""
        parts = self._parts[name]
        row = math.prod(parts.shape[1:])
        rows = parts.read(offsets[0] * row, lengths[0] * row).view(lengths[0], *parts.shape[1:])
        return rows[(slice(None), *(slice(o, o + n) for o, n in zip(offsets[1:], lengths[1:], strict=True)))]

    def model_config(self) -> ModelConfig:
        """Return the model that config.json describes."""
        return self._config

    def tokenizer_files(self) -> dict[str, Path]:
        """Return the tokenizer's files by name."""
        assert self._home is not None
        found = {name: self._home / name for name in TOKENIZER_FILES if (self._home / name).is_file()}
        return found if {"tokenizer.model", "tokenizer.json"} & found.keys() else {}


class _Parts:
    """A parameter's flattened elements, in ranges of flat tensors in files, in order."""

    def __init__(self, shape: tuple[int, ...], ranges: list[tuple[PickledTensors, str, int, int]]) -> None:
        self.shape = shape
        self._ranges = ranges  # file, name of the flat tensor, first element there, how many

    def read(self, start: int, count: int) -> torch.Tensor:
        found, begin = [], 0
        for file, name, first, length in self._ranges:
            low, high = max(start, begin), min(start + count, begin + length)
            if low < high:
                found.append(file.read(name, (first + low - begin,), (high - low,)))
            begin += length
        return torch.cat(found) if found else torch.empty(0)


def _find_tag(directory: Path) -> Path:
    if _is_tag(directory):
        return directory
    for pointer in ("latest", "latest_universal"):
        if (directory / pointer).is_file():
            name = (directory / pointer).read_text(encoding="utf-8", errors="replace").strip()
            if not re.fullmatch(r"[\w.-]{1,200}", name) or not _is_tag(directory / name):
                raise CheckpointError(f"{directory / pointer}: names {name[:200]!r}, which is no checkpoint beside it")
            return directory / name
    raise CheckpointError(f"{directory}: no checkpoint of DeepSpeed")


def _is_tag(path: Path) -> bool:
    return path.is_dir() and ((path / "zero").is_dir() or any(path.glob("*_model_states.pt")))


def _one_step(tag: Path, steps: list[float | None]) -> float | None:
    """Return the count of updates that all state says, None where a part of it is missing."""
    if None in steps or not steps:
        return None
    if len(set(steps)) != 1:
        raise CheckpointError(f"{tag}: parameters have done different numbers of updates: {sorted(set(steps))}")
    return steps[0]


def _canonical(name: str) -> str:
    return _WRAPPERS.sub("", name)


def _universal(
    tag: Path, steps: list[float | None], shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, str, _Parts]]:
    shared = _shared_step(tag / "zero" / "optimizer_state.pt")
    for place in sorted(path.parent for path in (tag / "zero").glob("*/fp32.pt")):
        files = {kind: place / f"{stored}.pt" for kind, stored in _KINDS.items()}
        present = {kind: path for kind, path in files.items() if path.is_file()}
        for kind, path in present.items():
            yield kind, place.name, _universal_tensor(path, shapes.get(_canonical(place.name)))
        step = pickled_number(place / f"{_STEP}.pt") if (place / f"{_STEP}.pt").is_file() else shared
        steps.append(step if present == files else None)


def _universal_tensor(path: Path, expected: tuple[int, ...] | None) -> _Parts:
    """Open one parameter; of ZeRO-3 it is flat, and its shape is the `expected` one if it has as many elements."""
    shape: list[tuple[int, ...]] = []

    def pick(value: dict[Any, Any]) -> dict[Any, Any]:
        tensor = value.get("param")
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{path}: holds no tensor `param`")
        flat = tensor.ndim == 1 and expected is not None and tensor.numel() == math.prod(expected)
        shape.append(expected if flat and expected is not None else tuple(tensor.shape))
        return {"param": tensor.flatten()}

    file = PickledTensors(path, _STAND_INS, pick, alone="param")
    return _Parts(shape[0], [(file, "param", 0, math.prod(shape[0]))])


def _shared_step(path: Path) -> float | None:
    """Return the count of updates in a universal checkpoint's one file of optimizer state, None if there is none."""
    if not path.is_file():
        return None
    counts: list[float | None] = []

    def pick(state: dict[Any, Any]) -> dict[Any, Any]:
        tensors = {}
        for number, moments in _moments(state, len(state.get("fp32_flat_groups", []))):
            if isinstance(moments[_STEP], torch.Tensor):
                tensors[str(number)] = moments[_STEP].reshape(1)
            else:
                counts.append(float(moments[_STEP]))
        return tensors

    file = PickledTensors(path, _STAND_INS, pick)
    counts += [float(file.read(name, (0,), (1,))) for name in file.tensors]
    return _one_step(path, counts)


def _native(tag: Path, steps: list[float | None]) -> Iterator[tuple[str, str, _Parts]]:
    files, stage = _flat_files(tag, steps)
    groups = _parameter_shapes(tag)
    for name, shape, ranges in (_zero_3 if stage == 3 else _zero_1_and_2)(tag, files, groups):
        for kind, stored in _KINDS.items():
            named = [(file, f"{stored}/{number}", first, length) for file, number, first, length in ranges]
            yield kind, name, _Parts(shape, named)


_Ranges = list[tuple[PickledTensors, int, int, int]]
"""File, number of the flat tensor, first element there, how many."""


def _zero_1_and_2(
    tag: Path, files: list[PickledTensors], groups: list[dict[str, tuple[int, ...]]]
) -> Iterator[tuple[str, tuple[int, ...], _Ranges]]:
    """A group's parameters follow each other, and the ranks hold equal parts of the whole."""
    for number, shapes in enumerate(groups):
        stored = f"fp32/{number}"
        sizes = [file.tensors[stored].shape[0] if stored in file.tensors else 0 for file in files]
        begins = [sum(sizes[:rank]) for rank in range(len(sizes) + 1)]
        offset = 0
        for name, shape in shapes.items():
            count = math.prod(shape)
            if offset + count > begins[-1]:
                raise CheckpointError(f"{tag}: group {number} ends before {name}; is a file of another checkpoint?")
            ranges = []
            for rank, file in enumerate(files):
                low, high = max(offset, begins[rank]), min(offset + count, begins[rank + 1])
                if low < high:
                    ranges.append((file, number, low - begins[rank], high - low))
            yield name, shape, ranges
            offset += count


def _zero_3(
    tag: Path, files: list[PickledTensors], groups: list[dict[str, tuple[int, ...]]]
) -> Iterator[tuple[str, tuple[int, ...], _Ranges]]:
    """Every rank holds an equal share of each parameter, the last one filled up; sub-groups follow each other."""
    ends: list[int] = []  # of the flat tensors, which are alike on all ranks
    while f"fp32/{len(ends)}" in files[0].tensors:
        ends.append((ends[-1] if ends else 0) + files[0].tensors[f"fp32/{len(ends)}"].shape[0])
    position = 0
    for name, shape in (item for group in groups for item in group.items()):
        count, share = math.prod(shape), -(-math.prod(shape) // len(files))
        place = next((number for number, end in enumerate(ends) if position + share <= end), None)
        if place is None:
            raise CheckpointError(f"{tag}: the ranks' files end before {name}; is a file of another checkpoint?")
        first = position - (ends[place - 1] if place else 0)
        lengths = [max(0, min(share, count - rank * share)) for rank in range(len(files))]
        yield name, shape, [(file, place, first, n) for file, n in zip(files, lengths, strict=True) if n]
        position += share


def _flat_files(tag: Path, steps: list[float | None]) -> tuple[list[PickledTensors], int]:
    """Open what the ranks held, in order, and say by which ZeRO stage; their counts of updates go to `steps`."""
    found: dict[int, Path] = {}
    for path in tag.glob("*_optim_states.pt"):
        match = _RANK.search(path.name)
        if match is None or int(match[2]) != 0:
            raise CheckpointError(
                f"{path}: of tensor or pipeline parallelism; convert with DeepSpeed's ds_to_universal first, and give "
                "its output"
            )
        found[int(match[1])] = path
    if not found or sorted(found) != list(range(len(found))):
        missing = sorted(set(range(max(found, default=0) + 1)) - found.keys())
        raise CheckpointError(f"{tag}: no *_optim_states.pt of rank {', '.join(map(str, missing))}")
    stages: list[int] = []
    numbers: list[dict[str, float]] = []  # counts of updates that are no tensors, per file

    def pick(path: Path, value: dict[Any, Any]) -> dict[Any, Any]:
        state = value.get("optimizer_state_dict")
        if not isinstance(state, dict):
            raise CheckpointError(f"{path}: no state of ZeRO")
        stages.append(int(state.get("zero_stage", 1)))  # that of bf16 with ZeRO-1 does not say it
        flat = state.get("fp32_flat_groups" if stages[-1] == 3 else "single_partition_of_fp32_groups")
        counts = state.get("partition_count")
        counts = set(counts) if isinstance(counts, list) else {counts}
        if not isinstance(flat, list) or counts != {len(found)}:
            raise CheckpointError(f"{path}: of {counts} ranks, but there are files of {len(found)}")
        padded = any(any(paddings) for paddings in state.get("param_alignment_paddings") or [])
        zero = value.get("ds_config", {}).get("zero_optimization", {})
        if padded or zero.get("round_robin_gradients"):
            raise CheckpointError(
                f"{path}: written with parameter_alignment or round_robin_gradients, which move parameters; convert "
                "with DeepSpeed's ds_to_universal first, and give its output"
            )
        tensors = {f"fp32/{number}": tensor for number, tensor in enumerate(flat)}
        numbers.append({})
        for number, moments in _moments(state, len(flat)):
            for stored in ("exp_avg", "exp_avg_sq"):
                tensors[f"{stored}/{number}"] = moments[stored]
            if isinstance(moments[_STEP], torch.Tensor):
                tensors[f"{_STEP}/{number}"] = moments[_STEP].reshape(1)
            else:
                numbers[-1][f"{_STEP}/{number}"] = float(moments[_STEP])
        return tensors

    files = [
        PickledTensors(path, _STAND_INS, lambda value, path=path: pick(path, value))
        for _, path in sorted(found.items())
    ]
    for file, counted in zip(files, numbers, strict=True):
        for name, entry in file.tensors.items():
            kind, _, number = name.partition("/")
            if entry.dtype != torch.float32 or len(entry.shape) != 1:
                raise CheckpointError(f"{file.path}: {kind} of group {number} is not flat float32")
            if kind == "fp32":
                step = f"{_STEP}/{number}"
                stored = float(file.read(step, (0,), (1,))) if step in file.tensors else None
                steps.append(counted.get(step, stored))
            elif kind != _STEP and entry.shape[0] < file.tensors[f"fp32/{number}"].shape[0]:
                raise CheckpointError(f"{file.path}: {kind} of group {number} is shorter than the weights")
    if len(set(stages)) != 1:
        raise CheckpointError(f"{tag}: files of different ZeRO stages: {sorted(set(stages))}")
    return files, stages[0]


def _moments(state: dict[Any, Any], groups: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of the flat tensor, its exp_avg, exp_avg_sq and step) where they are AdamW's."""
    saved = state.get("optimizer_state_dict", state.get("base_optimizer_state"))
    shared: dict[str, Any] = {}
    if isinstance(saved, dict):
        for group in saved.get("param_groups", []):  # DeepSpeed's own Adams count in the group
            shared |= {key: value for key, value in group.items() if key == _STEP}
        saved = saved.get("state", {})
    elif isinstance(saved, list):  # elastic
        shared = {_STEP: state.get("base_optimizer_state_step")}
        saved = dict(enumerate(saved))
    for number in range(groups):
        moments = shared | (saved or {}).get(number, {})
        if {"exp_avg", "exp_avg_sq"} <= moments.keys() and moments.get(_STEP) is not None:
            yield number, moments


def _parameter_shapes(tag: Path) -> list[dict[str, tuple[int, ...]]]:
    """Return name to shape of every parameter group, in the order in which they were flattened."""
    path = min(tag.glob("*_model_states.pt"), key=lambda each: (len(each.name), each.name))
    groups: list[dict[str, tuple[int, ...]]] = []

    def pick(value: dict[Any, Any]) -> dict[Any, Any]:
        shapes = value.get("param_shapes")
        if not isinstance(shapes, list) or not all(isinstance(group, dict) for group in shapes):
            raise CheckpointError(f"{path}: param_shapes is missing; saved without ZeRO?")
        groups.extend({str(name): tuple(shape) for name, shape in group.items()} for group in shapes)
        for name, shape in (item for group in groups for item in group.items()):
            if not all(type(size) is int and 0 <= size < 2**40 for size in shape) or len(shape) > 4:
                raise CheckpointError(f"{path}: {name} is of shape {str(shape)[:80]}")
        return {}

    PickledTensors(path, _STAND_INS, pick)
    return groups
