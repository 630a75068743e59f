"""Continuing token ids: greedy and nucleus sampling, the cache, batches of rows."""

import contextlib
import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch

from llama_foundation.errors import RunError
from llama_train import decode
from llama_train.config import RopeScaling
from llama_train.decode import Row, cached, generate_together, nucleus
from llama_train.decode import generate as generate_rows
from llama_train.model.llama import Llama
from llama_train.peers import Peers
from tests.llama_train.tiny_llama import random_llama, tiny_config


class Table:
    """A model whose next-token probabilities depend on the last token alone: row i of `probabilities`."""

    def __init__(self, probabilities: list[list[float]]) -> None:
        self.logits = torch.tensor(probabilities, dtype=torch.float64).log()
        self.read: list[torch.Tensor] = []

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        self.read.append(tokens)
        return self.logits[tokens[:, -1]]


def generate(
    model: Table,
    token_ids: list[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    stop_ids: tuple[int, ...],
    vocabulary_size: int | None = None,
) -> list[int]:
    row = Row(token_ids, max_new_tokens, temperature, top_p, seed, stop_ids)
    chosen: list[list[int]] = [[]]
    for _ in generate_rows(lambda lengths, slots: contextlib.nullcontext(model), [row], chosen, vocabulary_size):
        pass
    return chosen[0]


def chi_square(tokens: list[int], expected: dict[int, float]) -> float:
    assert set(tokens) <= set(expected)
    return sum((tokens.count(i) - p * len(tokens)) ** 2 / (p * len(tokens)) for i, p in expected.items())


def test_greedy_follows_the_likeliest_token() -> None:
    cycle = [[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]]
    assert generate(Table(cycle), [0], 7, 0, 0.9, 0, ()) == [1, 2, 0, 1, 2, 0, 1]
    assert generate(Table(cycle), [2, 1], 2, 0, 1e-9, 3, ()) == [2, 0]


def test_generation_ends_before_a_stop_token() -> None:
    cycle = [[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]]
    assert generate(Table(cycle), [1], 9, 0, 0.9, 0, (1,)) == [2, 0]
    assert generate(Table(cycle), [1], 9, 0, 0.9, 0, (2, 1)) == []


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        # Probabilities 0.1, 0.4, 0.05, 0.3, 0.15: by likelihood the ids are 1, 3, 4, 0, 2.
        (0.01, {1: 1.0}),
        (0.4, {1: 1.0}),
        (0.41, {1: 0.4 / 0.7, 3: 0.3 / 0.7}),
        (0.7, {1: 0.4 / 0.7, 3: 0.3 / 0.7}),
        (0.8, {1: 0.4 / 0.85, 3: 0.3 / 0.85, 4: 0.15 / 0.85}),
        (0.9, {1: 0.4 / 0.95, 3: 0.3 / 0.95, 4: 0.15 / 0.95, 0: 0.1 / 0.95}),
        (1.0, {1: 0.4, 3: 0.3, 4: 0.15, 0: 0.1, 2: 0.05}),
    ],
)
def test_nucleus_is_the_smallest_set_that_reaches_top_p(top_p: float, kept: dict[int, float]) -> None:
    probabilities = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15], dtype=torch.float64)
    assert {i: p for i, p in enumerate(nucleus(probabilities, top_p).tolist()) if p} == pytest.approx(kept)


def test_nucleus_of_equal_tokens_takes_the_lower_ids() -> None:
    assert nucleus(torch.full((4096,), 2**-12), 0.5).tolist() == [2**-11] * 2048 + [0] * 2048


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, {0: 0.5, 1: 0.25, 2: 0.125, 3: 0.125}),
        (1.0, 0.75, {0: 2 / 3, 1: 1 / 3}),
        # Halving the temperature squares the odds: 1/4, 1/16, 1/64, 1/64 over their sum of 11/32.
        (0.5, 1.0, {0: 8 / 11, 1: 2 / 11, 2: 0.5 / 11, 3: 0.5 / 11}),
        (0.5, 0.9, {0: 0.8, 1: 0.2}),
    ],
)
def test_samples_have_the_stated_distribution(temperature: float, top_p: float, expected: dict[int, float]) -> None:
    model = Table([[0.5, 0.25, 0.125, 0.125]] * 4)
    drawn = generate(model, [0], 1000, temperature, top_p, 7, ())
    assert len(drawn) == 1000
    assert chi_square(drawn, expected) < 16.3  # 0.1 % point for 3 degrees of freedom, Pearson 1900


def test_every_draw_sees_the_tokens_before_it() -> None:
    model = Table([[0.9, 0.1], [0.3, 0.7]])
    drawn = [0, *generate(model, [0], 1500, 1.0, 1.0, 1, ())]
    after = {state: [b for a, b in pairwise(drawn) if a == state] for state in (0, 1)}
    assert chi_square(after[0], {0: 0.9, 1: 0.1}) < 10.8  # 0.1 % point for 1 degree of freedom
    assert chi_square(after[1], {0: 0.3, 1: 0.7}) < 10.8
    assert torch.cat([tokens[0] for tokens in model.read]).tolist() == drawn[:-1]


def test_the_seed_decides_the_sample() -> None:
    model = Table([[0.25] * 4] * 4)
    first, again, other = (generate(model, [0], 50, 1.0, 1.0, seed, ()) for seed in (5, 5, 6))
    assert first == again != other
    torch.manual_seed(123)
    assert generate(model, [0], 50, 1.0, 1.0, 5, ()) == first


def test_outputs_beyond_the_vocabulary_are_never_chosen() -> None:
    model = Table([[0.1, 0.2, 0.6, 0.1]] * 4)
    assert generate(model, [0], 3, 0, 0.9, 0, (), vocabulary_size=2) == [1, 1, 1]
    drawn = generate(model, [0], 600, 1.0, 1.0, 0, (), vocabulary_size=2)
    assert chi_square(drawn, {0: 1 / 3, 1: 2 / 3}) < 10.8


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_numbers_that_are_not_finite_are_refused(temperature: float) -> None:
    with pytest.raises(RunError, match="after 2 tokens is not finite"):
        generate(Table([[float("nan"), 1.0]] * 2), [0, 1], 5, temperature, 0.9, 0, ())


SHAPES = {
    "llama1": {"kv_heads": 4},
    "llama2 70b": {"kv_heads": 1},
    "llama3": {"rope_theta": 500000.0},
    "llama3.1": {"rope_theta": 500000.0, "rope_scaling": RopeScaling(original_context=16)},
    "llama3.2": {
        "rope_theta": 500000.0,
        "rope_scaling": RopeScaling(32.0, original_context=16),
        "tied_embeddings": True,
    },
}


def random_model(seed: int, **changes: Any) -> Llama:
    torch.manual_seed(seed)
    model = Llama(tiny_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_cached_and_uncached_distributions_agree(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "PREFILL_TOKENS", 4)  # prompts are read in several passes
    model = random_model(1, **SHAPES[shape])
    rows = [torch.randint(3, 300, (length,)).tolist() for length in (9, 1, 14, 5)]
    longest = max(map(len, rows))
    with cached(model, [len(row) for row in rows], longest + 20) as next_logits:
        tokens = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        for part in tokens.split(4, dim=1):
            logits = next_logits(part)
        seen = []
        for _ in range(20):
            seen += zip(rows, logits.softmax(-1), strict=True)
            drawn = torch.randint(3, 300, (4, 1))
            rows = [[*row, int(more)] for row, more in zip(rows, drawn, strict=True)]
            logits = next_logits(drawn)
    for row, ours in seen:  # against the row alone, without padding, over its whole text at once
        assert float((ours - model(torch.tensor([row]))[0, -1].softmax(-1)).abs().max()) < 1e-6
    assert len({len(row) for row, _ in seen}) > 20


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_texts_of_a_batch_are_those_of_transformers(shape: str) -> None:
    changes = SHAPES[shape]
    model = random_model(2, **changes)
    scaling = changes.get("rope_scaling")
    rope = {"rope_type": "default", "rope_theta": changes.get("rope_theta", 10000.0)}
    if scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    tied = changes.get("tied_embeddings", False)
    theirs = random_llama(
        num_key_value_heads=changes.get("kv_heads", 2),
        rms_norm_eps=1e-5,
        rope_parameters=rope,
        tie_word_embeddings=tied,
        eos_token_id=None,
        bos_token_id=1,
    )
    weights = model.state_dict()
    theirs.load_state_dict(weights | ({"lm_head.weight": weights["model.embed_tokens.weight"]} if tied else {}))
    prompts = [torch.randint(3, 300, (length,)).tolist() for length in (11, 3, 30, 1)]
    ours = generate_together(model, [Row(prompt, 30) for prompt in prompts], Peers(), batch_size=4)
    for prompt, continuation in zip(prompts, ours, strict=True):
        expected = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=30,
            do_sample=False,
            pad_token_id=0,
        )[0].tolist()
        assert [*prompt, *continuation] == expected
    assert len({tuple(row) for row in ours}) == 4


def test_a_sampled_text_does_not_depend_on_its_batch() -> None:
    model = random_model(3)
    rows = [
        Row(torch.randint(3, 300, (length,)).tolist(), new, temperature=1.0, top_p=0.9, seed=seed)
        for length, new, seed in ((4, 25, 5), (20, 10, 6), (1, 30, 7), (4, 1, 8), (9, 12, 5))
    ]
    together = generate_together(model, rows, Peers(), batch_size=5)
    assert [len(text) for text in together] == [25, 10, 30, 1, 12]
    assert generate_together(model, rows, Peers(), batch_size=2) == together
    assert [generate_together(model, [row], Peers(), batch_size=1)[0] for row in rows] == together
    other = dataclasses.replace(rows[0], seed=9)
    assert generate_together(model, [other], Peers(), batch_size=1)[0] != together[0]


def test_a_row_stops_when_asked_to_and_the_others_go_on() -> None:
    model = random_model(4)
    prompts = [[1, 7, 9], [1, 30]]
    free = generate_together(model, [Row(prompt, 12) for prompt in prompts], Peers(), batch_size=2)
    stopping = Row(prompts[0], 12, stopped=lambda ids: len(ids) == 3)
    assert generate_together(model, [stopping, Row(prompts[1], 12)], Peers(), batch_size=2) == [free[0][:3], free[1]]
    first = free[1][4]
    at_id = Row(prompts[1], 12, stop_ids=(first,))
    stopped = generate_together(model, [Row(prompts[0], 12), at_id], Peers(), batch_size=2)
    assert stopped == [free[0], free[1][: free[1].index(first)]]


def test_a_failure_on_one_rank_is_raised_after_its_passes() -> None:
    model = Llama(tiny_config())
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="is not finite; use an older checkpoint"):
        generate_together(model, [Row([1, 2], 3)], Peers(), batch_size=1)
