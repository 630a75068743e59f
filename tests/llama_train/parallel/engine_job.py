"""One rank that trains a tiny Llama in several layouts, and says all that can be seen of it."""

from dataclasses import dataclass, field
from typing import Any

import torch

from llama_train.config import (
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    LayoutConfig,
    ModelConfig,
    OptimizerConfig,
    Precision,
    TrainConfig,
)
from llama_train.data.batches import MicroBatch
from llama_train.decode import Row, generate_together
from llama_train.engine import native, shared
from llama_train.engine.engine import Chunk
from llama_train.evaluate.score import Scorer
from llama_train.model.llama import IGNORE
from llama_train.observe.statistics import LayerStatistics
from llama_train.parallel.layout import make_request_group
from llama_train.parallel.resolve import resolve_layout
from llama_train.peers import Peers

ROWS, LENGTH, VOCABULARY = 8, 16, 101
STEPS = 2
PROMPTS = [[1, 5, 9], [1, 7], [1, 3, 3, 8, 20], [1], [1, 60, 61]]


@dataclass(frozen=True)
class Case:
    """How a tiny Llama is run."""

    layout: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    tied: bool = False
    documents: bool = True  # rows of several, which see only themselves


@dataclass
class Seen:
    """What one rank saw. Rectangles are (name, whole shape, offsets, values, owner)."""

    losses: list[float]
    norms: list[float]
    gradients: list[tuple]
    weights: list[tuple]
    evaluated: tuple[float, int]
    statistics: tuple[Any, Any]
    logits: Any
    generated: list[list[int]]
    likelihoods: list[tuple[float, bool]]
    bubbles: list[float | None]
    made: int  # elements of initial values that this rank made
    held: int  # elements of weights that it holds


class Letters:
    """A tokenizer for tests: a letter is a token."""

    bos_id = 1
    vocabulary_size = VOCABULARY
    end_of_text_ids = (2,)

    def encode_batch(self, texts: list[str]) -> list[Any]:
        return [torch.tensor([3 + ord(letter) % 90 for letter in text]) for text in texts]


def tiny(case: Case) -> TrainConfig:
    """A configuration that does not divide: 5 layers, 101 tokens."""
    return TrainConfig(
        steps=STEPS,
        model=ModelConfig("tiny", VOCABULARY, 32, 5, 4, 2, 48, LENGTH, initial_std=0.1, tied_embeddings=case.tied),
        data=DataConfig(shards="x", sequence_length=LENGTH, batch_size=ROWS, document_masks=case.documents),
        optimizer=OptimizerConfig(learning_rate=1e-2, max_grad_norm=0.5),
        layout=LayoutConfig(**case.layout),
        engine=EngineConfig(precision=Precision.fp64, **{"loss_chunk": 5, "timeout_seconds": 250.0, **case.engine}),
        checkpoint=CheckpointConfig(),
    )


def batch(step: int, documents: bool = True) -> MicroBatch:
    """A whole batch: several documents in a row unless they are not told apart, one row without a label."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator, dtype=torch.int32)
    labels = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator, dtype=torch.int32)
    starts = torch.rand(ROWS, LENGTH, generator=generator) < 0.2
    starts[:, 0] = True
    document_ids = (starts.cumsum(1) - 1).int()
    first = torch.where(starts, torch.arange(LENGTH), 0).cummax(1).values
    labels[starts.roll(-1, 1)] = IGNORE
    labels[3] = IGNORE
    if not documents:
        return MicroBatch(tokens, labels, None, torch.arange(LENGTH, dtype=torch.int32).expand(ROWS, LENGTH))
    return MicroBatch(tokens, labels, document_ids, (torch.arange(LENGTH) - first).int())


def part(whole: MicroBatch, rank: int, world: int, rows: int) -> list[MicroBatch]:
    """The micro-batches of a data-parallel rank."""
    share = ROWS // world
    tensors = [getattr(whole, name) for name in whole.__dataclass_fields__]
    return [
        MicroBatch(*(None if tensor is None else tensor[first : first + rows] for tensor in tensors))
        for first in range(rank * share, (rank + 1) * share, rows)
    ]


def run(rank: int, size: int, cases: dict[str, Case]) -> dict[str, Seen]:
    """Run every case; two steps each."""
    return {name: run_case(rank, size, case) for name, case in cases.items()}


def run_case(rank: int, size: int, case: Case) -> Seen:
    config = tiny(case)
    layout = resolve_layout(config, size, rank)
    made: list[int] = []
    initial_values = shared.initial_values

    def counted(*arguments: Any) -> torch.Tensor:
        values = initial_values(*arguments)
        made.append(values.numel())
        return values

    shared.initial_values = counted
    try:
        engine = native.NativeEngine(config, layout, torch.device("cpu"))
    finally:
        shared.initial_values = initial_values
    gradients: list[tuple] = []
    statistics = LayerStatistics(config.model, torch.device("cpu"), lambda: engine.chunks(optimizer=False))
    results = []
    for step in range(STEPS):
        mine = part(batch(step, case.documents), layout.data_rank, layout.data_world, layout.micro_batch_size)
        looks: dict[str, Any] = {}
        if step == 0:
            looks = {"look_at_gradients": lambda chunks: gradients.extend(map(rectangle, chunks))}
        if step == 1:
            looks = {
                "look_at_gradients": statistics.look_at_gradients,
                "look_at_outputs": statistics.look_at_output,
            }
        results.append(engine.step(mine, 1e-2, **looks))
    rows = layout.micro_batch_size
    evaluated = engine.evaluate(part(batch(9, case.documents), layout.data_rank, layout.data_world, rows))
    peers = Peers(make_request_group(layout, 250.0))
    requests = [Row(ids, 6, temperature=0.7 * (n % 2), seed=n) for n, ids in enumerate(PROMPTS)]
    scorer = Scorer(engine.model, LENGTH, Letters(), peers, batch_size=2)
    pairs = [("ab", "cd"), ("", "x"), ("the longest of all contexts here", "y"), ("q", "rst"), ("z ", "a b")]
    with torch.no_grad():
        logits = engine.model(torch.arange(26).view(2, 13) % VOCABULARY)
    return Seen(
        losses=[result.loss for result in results],
        norms=[result.grad_norm for result in results],
        gradients=gradients,
        weights=[rectangle(chunk) for chunk in engine.chunks()],
        evaluated=evaluated,
        statistics=statistics.take(),
        logits=logits.detach().numpy(),
        generated=generate_together(engine.model, requests, peers, batch_size=2, vocabulary_size=VOCABULARY),
        likelihoods=[(each.log_likelihood, each.greedy) for each in scorer.likelihoods(pairs)],
        bubbles=[result.pipeline_bubble for result in results],
        made=sum(made),
        held=sum(chunk.tensor.numel() for chunk in engine.chunks(optimizer=False)),
    )


def rectangle(chunk: Chunk) -> tuple:
    return chunk.name, chunk.shape, chunk.offsets, chunk.tensor.detach().clone().numpy(), chunk.owner
