"""Which layers each pipeline stage holds, and which rank holds which stage."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llama_train.config import ModelConfig, PipelineSchedule
from llama_train.model.names import parameter_shapes
from llama_train.parallel.layout import Layout

if TYPE_CHECKING:
    from llama_train.model.llama import Llama

V_SCHEDULES = (PipelineSchedule.zero_bubble_v, PipelineSchedule.dual_pipe_v)

SPLIT_BACKWARD = (PipelineSchedule.interleaved_zero_bubble, *V_SCHEDULES)
"""The schedules that compute the gradients of inputs and of weights at different times."""


def splits_backward(layout: Layout) -> bool:
    """Whether the backward pass of a stage comes in two halves."""
    return layout.pipeline > 1 and layout.config.pipeline_schedule in SPLIT_BACKWARD


def stage_ranks(layout: Layout) -> list[int]:
    """Return for every stage the pipeline rank that holds it.

    Stages go round the ranks; in a V they come back: rank 0 has the first and the last.
    """
    ranks = list(range(layout.pipeline))
    if layout.config.pipeline_schedule in V_SCHEDULES:
        return ranks + ranks[::-1]
    return ranks * layout.config.stages_per_rank


def layers_per_stage(model: ModelConfig, stages: int, chosen: list[int] | None) -> list[int]:
    """Return how many layers each stage holds.

    Unless it is chosen, layers go one by one to the stage with the least work so far, where the head counts as so many
    layers as it has parameters of one (a matrix multiplication's work is in proportion to its weights). Among equals
    the later stages come first: with 1F1B the first ones hold the most activations.
    """
    if chosen is not None:
        return list(chosen)
    shapes = parameter_shapes(replace(model, layers=1))
    layer = sum(_size(shape) for name, shape in shapes.items() if name.startswith("model.layers.0."))
    work = [0.0] * stages
    work[-1] += model.vocab_size * model.hidden_size / layer
    counts = [1] * stages
    for stage in range(stages):
        work[stage] += 1
    for _ in range(model.layers - stages):
        stage = min(reversed(range(stages)), key=lambda stage: work[stage])
        counts[stage] += 1
        work[stage] += 1
    return counts


def stage_layers(counts: list[int], stage: int) -> range:
    """Return the layers of one stage."""
    first = sum(counts[:stage])
    return range(first, first + counts[stage])


def _size(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def stage_numbers(layout: Layout) -> list[int]:
    """Return the pipeline stages that this rank holds, ascending."""
    return [stage for stage, rank in enumerate(stage_ranks(layout)) if rank == layout.place["pipeline"]]


def make_stage(config: ModelConfig, layout: Layout, stage: int) -> Llama:
    """Return the part of a Llama that is pipeline stage `stage`; on the meta device if that is torch's default."""
    from torch import nn

    from llama_train.model.llama import Llama

    stages = stage_ranks(layout)
    model = Llama(config)
    if len(stages) == 1:
        return model
    own = stage_layers(layers_per_stage(config, len(stages), layout.config.layers_per_stage), stage)
    for layer in range(config.layers):
        if layer not in own:
            del model.model.layers[str(layer)]
    last = stage == len(stages) - 1
    if last and config.tied_embeddings:
        # The other end has the embedding: this is a copy of its weight, and `Held` names it so.
        model.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    if stage > 0:
        model.model.embed_tokens = None
    model.loss_backward_twice = splits_backward(layout)
    if last:
        model.register_forward_hook(_loss_alone)
    else:
        model.model.norm = None
        model.lm_head = None
    return model


def _loss_alone(model: Llama, arguments: Any, result: Any) -> Any:
    """Turn (loss, count) into the loss [1]: a schedule wants one tensor to begin its backward pass at."""
    import torch

    return result[0].reshape(1) if torch.is_grad_enabled() and isinstance(result, tuple) else result
