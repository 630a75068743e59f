"""The table of what a rank holds: canonical name, parameter, and which rectangle of the whole tensor it is."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from llama_train.config import ModelConfig
from llama_train.engine.engine import Chunk
from llama_train.model.llama import Llama
from llama_train.model.names import canonical_parameters, parameter_shapes
from llama_train.parallel.layout import Layout
from llama_train.parallel.tensor import Slice, tensor_slice


@dataclass(frozen=True)
class Held:
    """One parameter of this rank. `part` is its slice by tensor parallelism; FSDP2 may have cut that further."""

    name: str
    shape: tuple[int, ...]  # of the whole, unpadded tensor
    parameter: nn.Parameter
    part: Slice
    owner: bool  # of several copies along tensor and pipeline, the one that is written and counted

    def chunks(self, name: str, tensor: torch.Tensor) -> Iterator[Chunk]:
        """Yield the rectangle of `tensor`, which is cut as the parameter is; nothing where this rank has no row."""
        tensor = tensor.detach()
        local, offsets, owner = tensor, [0] * tensor.ndim, self.owner
        if isinstance(tensor, DTensor):
            local = tensor.to_local()
            _, found = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
            coordinate = tensor.device_mesh.get_coordinate()
            assert coordinate is not None
            offsets = list(found)
            owner = owner and all(
                place == 0
                for place, placement in zip(coordinate, tensor.placements, strict=True)
                if isinstance(placement, Replicate)
            )
        dimension = self.part.dimension
        if dimension is not None:
            real = min(local.shape[dimension], max(self.part.length - offsets[dimension], 0))  # the rest is padding
            local = local.narrow(dimension, 0, real)
            offsets[dimension] += self.part.start
        if local.numel():
            yield Chunk(name, self.shape, tuple(offsets), local, owner)


def held_parameters(models: dict[int, Llama], config: ModelConfig, layout: Layout) -> list[Held]:
    """Return every parameter of this rank's stages."""
    shapes = parameter_shapes(config)
    held = []
    for model in models.values():
        for name, parameter in canonical_parameters(model):
            tied_copy = name not in shapes
            if tied_copy:
                assert name == "lm_head.weight" and config.tied_embeddings, name
                name = "model.embed_tokens.weight"
            part = tensor_slice(name, shapes[name], config, layout)
            held.append(Held(name, shapes[name], parameter, part, part.owner and not tied_copy))
    return held
