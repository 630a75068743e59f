"""Continuing token ids: the key/value cache, the choice of the next token, and the loop around them.

Shape suffixes are those of `model/llama.py`, and T for the slots of the cache.

Rows of different lengths are padded on the left, so that all of them end in the same slot. A padded slot is never
seen by a later one, and a row's positions count from its own first token: padding changes nothing that is computed.

"""

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from llama_foundation.errors import RunError
from llama_train.model.llama import Attention, Llama, rotate
from llama_train.peers import Peers, device_of, in_step

PREFILL_TOKENS = 512
"""Of every row in one pass over the prompts: bounds the memory of the logits, of which only the last are used."""


@dataclass(frozen=True)
class Row:
    """One text to continue, and how."""

    token_ids: list[int]  # at least one (bos)
    max_new_tokens: int
    temperature: float = 0.0  # logits are divided by it; 0 takes the largest logit instead of sampling
    top_p: float = 1.0  # see `nucleus`
    seed: int = 0  # of the draws, which are made on the CPU, so that a seed means the same on every device
    stop_ids: Collection[int] = ()  # ends the continuation, and is left out of it
    stopped: Callable[[list[int]], bool] | None = None  # asked after every token whether the continuation is complete


class NextLogits(Protocol):
    """A model that remembers what it has read."""

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read the next tokens [B, S] of every row, S >= 1, and return the logits [B, V] after the last."""


def generate_together(
    model: Llama, rows: list[Row], peers: Peers, batch_size: int, vocabulary_size: int | None = None
) -> list[list[int]]:
    """Return the continuation of every row; all ranks give the same rows and get the same answer.

    The rows are sorted by length, longest first, and dealt out to the ranks in batches.

    Raises:
        RunError: the model gives numbers that are not finite.
    """
    order = sorted(range(len(rows)), key=lambda number: (-len(rows[number].token_ids), number))
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    mine = batches[peers.rank :: peers.size]
    chosen: dict[int, list[int]] = {number: [] for batch in mine for number in batch}

    def passes() -> Iterator[None]:
        for batch in mine:
            yield from generate(
                functools.partial(cached if isinstance(model, Llama) else reread, model),
                [rows[number] for number in batch],
                [chosen[number] for number in batch],
                vocabulary_size,
                device_of(model),
            )

    in_step(passes(), model, peers)
    return peers.share(chosen)


@torch.no_grad()  # not inference_mode: the weights that FSDP2 gathers here may be trained on next
def generate(
    start: Callable[[list[int], int], contextlib.AbstractContextManager[NextLogits]],
    rows: list[Row],
    chosen: list[list[int]],
    vocabulary_size: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[None]:
    """Continue `rows`, and put the tokens of each into `chosen`; yields before each forward pass (`peers.in_step`).

    A row's tokens depend on the row alone, not on those beside it.

    Args:
        start: (the rows' lengths, slots) to what gives their logits: `cached`, of a model.
        chosen: one empty list for each row.
        vocabulary_size: only ids below it are chosen; a model may have more outputs than its tokenizer has tokens.

    Raises:
        RunError: the model gives numbers that are not finite.
    """
    lengths = [len(row.token_ids) for row in rows]
    longest = max(lengths)
    assert min(lengths) > 0, "a row needs a token to start from"
    padded = [[0] * (longest - len(row.token_ids)) + row.token_ids for row in rows]
    tokens = torch.tensor(padded, device=device)
    generators = [torch.Generator().manual_seed(row.seed) for row in rows]
    active = [row.max_new_tokens > 0 for row in rows]
    with start(lengths, longest + max(row.max_new_tokens for row in rows)) as next_logits:
        while any(active):
            for part in tokens.split(PREFILL_TOKENS, dim=1):
                yield
                logits_BV = next_logits(part)[:, :vocabulary_size]
            if not bool(logits_BV[torch.tensor(active, device=device)].isfinite().all()):
                raise RunError(
                    f"the model's output after {longest + max(map(len, chosen))} tokens is not finite; "
                    "use an older checkpoint"
                )
            likeliest = logits_BV.argmax(dim=-1).tolist()
            for number, row in enumerate(rows):
                if not active[number]:
                    continue
                token_id = likeliest[number]
                if row.temperature > 0:
                    token_id = sample(logits_BV[number], row.temperature, row.top_p, generators[number])
                if token_id in row.stop_ids:
                    active[number] = False
                    continue
                chosen[number].append(token_id)
                done = len(chosen[number]) == row.max_new_tokens
                active[number] = not (done or (row.stopped is not None and row.stopped(chosen[number])))
            # What a finished row goes on with is thrown away.
            tokens = torch.tensor([[mine[-1] if mine else 0] for mine in chosen], device=device)


def sample(logits_V: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Draw a token id from the likeliest tokens that together have probability `top_p`; on the CPU, in float64."""
    probabilities = nucleus(torch.softmax(logits_V.to("cpu", torch.float64) / temperature, dim=-1), top_p)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the fewest most likely tokens whose probabilities reach `top_p`, scaled to sum to 1; the others get 0.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1. Of equally likely tokens the
    lower id comes first.
    """
    ordered, order = probabilities.sort(descending=True, stable=True)
    before = torch.cat([ordered.new_zeros(1), ordered.cumsum(dim=0)[:-1]])
    kept = torch.where(before < top_p, ordered, 0)
    return torch.zeros_like(probabilities).scatter(0, order, kept / kept.sum())


@contextlib.contextmanager
def cached(model: Llama, lengths: list[int], slots: int) -> Iterator[NextLogits]:
    """Let `model` remember the keys and values of the rows it reads, until the block ends.

    `model` may be sharded, checkpointed or compiled block by block; inside the block it runs uncompiled.

    Args:
        lengths: tokens of every row's prompt; the first pass reads rows padded on the left to the longest.
        slots: tokens of the longest row when it is done.
    """
    longest = max(lengths)
    padding_B = torch.tensor([longest - length for length in lengths], device=device_of(model))
    rows = _Rows(padding_B, slots)
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    was_training = model.training
    model.eval()
    for attention in attentions:
        attention.forward = functools.partial(_cached_attention, attention, _LayerCache(), rows)

    def next_logits(tokens: torch.Tensor) -> torch.Tensor:
        rows.advance(tokens.shape[1])
        return model(tokens, positions=rows.positions_BS)[:, -1]

    try:
        with torch.compiler.set_stance("force_eager"):
            yield next_logits
    finally:
        for attention in attentions:
            del attention.forward
        model.train(was_training)


@contextlib.contextmanager
def reread(model: Callable[[torch.Tensor], torch.Tensor], lengths: list[int], slots: int) -> Iterator[NextLogits]:
    """Give what `cached` gives, of a model that is cut over ranks: it remembers nothing and reads all again.

    Args:
        model: tokens [B, S] to logits [B, S, V]; a token does not depend on those behind it.
        lengths, slots: as for `cached`.
    """
    padding = torch.tensor([max(lengths) - length for length in lengths])
    read: list[torch.Tensor] = []

    def next_logits(tokens: torch.Tensor) -> torch.Tensor:
        read.append(tokens)
        whole = torch.cat(read, dim=1)
        padding_B = padding.to(whole.device)
        total = whole.shape[1]
        assert total <= slots, (total, slots)
        # Rows are moved to the left, where positions begin; what comes in behind them is never looked at.
        index = (torch.arange(total, device=whole.device) + padding_B[:, None]).clamp(max=total - 1)
        last_B = (total - 1 - padding_B).clamp(min=0)
        logits_BSV = model(whole.gather(1, index))
        return logits_BSV[torch.arange(len(lengths)), last_B.to(logits_BSV.device)]

    yield next_logits


class _Rows:
    """Where in the cache all layers are: the slots that this pass fills, and what its queries may see."""

    def __init__(self, padding_B: torch.Tensor, slots: int) -> None:
        self.padding_B = padding_B
        self.slots = slots
        self.first = self.stop = 0

    def advance(self, count: int) -> None:
        self.first, self.stop = self.stop, self.stop + count
        assert self.stop <= self.slots, (self.stop, self.slots)
        slots_T = torch.arange(self.stop, device=self.padding_B.device)
        queries_S = slots_T[self.first :]
        self.positions_BS = (queries_S - self.padding_B[:, None]).clamp(min=0)
        visible_BST = (slots_T <= queries_S[:, None]) & (slots_T >= self.padding_B[:, None, None])
        # A padded query sees itself: seeing nothing would make it NaN, which no mask keeps from the others.
        self.mask_B1ST = (visible_BST | (slots_T == queries_S[:, None]))[:, None]


class _LayerCache:
    """Keys and values [B, K, T, E] of one layer, made whole when the first are seen."""

    def __init__(self) -> None:
        self.keys_BKTE: torch.Tensor | None = None
        self.values_BKTE: torch.Tensor | None = None

    def add(self, rows: _Rows, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.keys_BKTE is None:
            batch, heads, _, size = k_BKSE.shape
            self.keys_BKTE = k_BKSE.new_empty(batch, heads, rows.slots, size)
            self.values_BKTE = v_BKSE.new_empty(batch, heads, rows.slots, size)
        self.keys_BKTE[:, :, rows.first : rows.stop] = k_BKSE
        self.values_BKTE[:, :, rows.first : rows.stop] = v_BKSE
        return self.keys_BKTE[:, :, : rows.stop], self.values_BKTE[:, :, : rows.stop]


def _cached_attention(
    attention: Attention,
    cache: _LayerCache,
    rows: _Rows,
    hidden_BSD: torch.Tensor,
    cos_BSE: torch.Tensor,
    sin_BSE: torch.Tensor,
    *_: Any,
) -> torch.Tensor:
    """What `Attention.forward` computes, over all that the rows have read so far."""
    q_BHSE = attention.q_proj(hidden_BSD).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    k_BKSE = attention.k_proj(hidden_BSD).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    v_BKSE = attention.v_proj(hidden_BSD).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    q_BHSE, k_BKSE = rotate(q_BHSE, cos_BSE, sin_BSE), rotate(k_BKSE, cos_BSE, sin_BSE)
    k_BKTE, v_BKTE = cache.add(rows, k_BKSE, v_BKSE)
    # The queries that share a key head stand one behind the other, so that no key is repeated in memory.
    sharing = q_BHSE.shape[1] // k_BKTE.shape[1]
    q_BKGE = q_BHSE.unflatten(1, (-1, sharing)).flatten(2, 3)
    attended_BKGE = F.scaled_dot_product_attention(
        q_BKGE, k_BKTE, v_BKTE, attn_mask=rows.mask_B1ST.repeat(1, 1, sharing, 1)
    )
    attended_BHSE = attended_BKGE.unflatten(2, (sharing, -1)).flatten(1, 2)
    return attention.o_proj(attended_BHSE.transpose(1, 2).flatten(2))
