"""Generation: greedy, nucleus sampling, and the command around them."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from data_pipeline.tokenize import load_tokenizer, train_sentencepiece
from llama_foundation import compose
from llama_foundation.errors import ConfigError, RunError
from llama_train import decode, inference
from llama_train.config import ModelConfig, RopeScaling
from llama_train.decode import Row, cached, generate_together, nucleus
from llama_train.decode import generate as generate_rows
from llama_train.generate import GenerateConfig, main
from llama_train.model.llama import Llama
from llama_train.peers import Peers

TEXT = "The miller's daughter counted 17 lanterns, and then the river took them all. " * 20


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


@pytest.mark.parametrize(
    "override",
    ["temperature=-0.1", "temperature=nan", "temperature=inf", "top_p=0", "top_p=1.01", "max_new_tokens=0", "seed=-1"],
)
def test_a_bad_setting_is_refused_by_name(override: str) -> None:
    with pytest.raises(ConfigError, match=f"^{override.split('=')[0]}="):
        compose.compose("generate", GenerateConfig, ["checkpoint=x", override])


@pytest.fixture(scope="module")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece([TEXT], directory / "tokenizer.model", 300)
    return directory


def tiny(**changes: Any) -> ModelConfig:
    sizes = {"vocab_size": 300, "hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_size": 48}
    return ModelConfig(**{"name": "tiny", "context": 64, **sizes, **changes})


def repeating() -> Llama:
    """A model that gives the last token again: its layers add nothing, and every embedding is nearest to itself."""
    torch.manual_seed(0)
    model = Llama(tiny(hidden_size=512))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    return model


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tokenizer_directory: Path):
    """A checkpoint whose model repeats the prompt's last token, and the arguments it was loaded with."""
    calls: list[tuple[str, str]] = []

    def load_model(path: str, device: str = "cpu"):
        calls.append((path, device))
        return repeating(), tiny(hidden_size=512), tokenizer_directory

    monkeypatch.setattr(inference, "load_model", load_model)
    return calls


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["llama-generate", *arguments])
    return main()


def test_the_command_prints_the_prompt_and_its_continuation(loaded, monkeypatch, capsys, tokenizer_directory) -> None:
    assert run_main(monkeypatch, "checkpoint=runs/a", "device=cpu", "prompt=The river", "max_new_tokens=3") == 0
    printed = capsys.readouterr()
    tokenizer = load_tokenizer(tokenizer_directory)
    ids = tokenizer.encode_batch(["The river"])[0].tolist()
    assert printed.out == tokenizer.decode([*ids, ids[-1], ids[-1], ids[-1]]) + "\n"
    assert printed.out.startswith("The river")
    assert printed.err == ""
    assert loaded[0] == ("runs/a", "cpu")


def test_prompts_of_a_file_are_continued_in_order_and_written(loaded, monkeypatch, capsys, tmp_path) -> None:
    prompts = ["The river", "a", "", "The miller's daughter counted"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    arguments = ("checkpoint=x", f"prompts={tmp_path}/in.jsonl", f"output={tmp_path}/out.jsonl", "batch_size=3")
    assert run_main(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out == f"4 texts -> {tmp_path}/out.jsonl\n"
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    assert all(line["text"].startswith(line["prompt"]) for line in lines)
    assert len({line["text"] for line in lines}) == 4


@pytest.mark.parametrize("line", ["[]", "{}", "7", "{", '{"prompt": 3}'])
def test_a_line_that_is_no_prompt_is_refused_by_number(line: str, loaded, monkeypatch, capsys, tmp_path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n' + line + "\n")
    assert run_main(monkeypatch, "checkpoint=x", f"prompts={tmp_path}/in.jsonl") == 2
    assert "in.jsonl: line 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "prompt", ["a, b", 'she said "no"', "it's", "{x: [1,2", "${oc.env:HOME}", " x ", "null", "7", "a=b", "\\", "日本\n"]
)
def test_the_prompt_is_taken_as_typed(prompt: str, loaded, monkeypatch, capsys) -> None:
    assert run_main(monkeypatch, "checkpoint=x", f"prompt={prompt}", "max_new_tokens=1") == 0
    assert capsys.readouterr().out.startswith(prompt)


def test_a_prompt_longer_than_the_context_is_refused(loaded, monkeypatch, capsys) -> None:
    assert run_main(monkeypatch, "checkpoint=x", f"prompt={TEXT}") == 2
    error = capsys.readouterr().err
    assert "prompt has" in error
    assert "use a prompt of less than 64 tokens" in error


def test_a_continuation_longer_than_the_context_says_what_fits(
    loaded, monkeypatch, capsys, tokenizer_directory
) -> None:
    prompt_tokens = 1 + len(load_tokenizer(tokenizer_directory).encode_batch(["The river"])[0])
    room = 64 - prompt_tokens
    arguments = ("checkpoint=x", "prompt=The river")
    assert run_main(monkeypatch, *arguments, f"max_new_tokens={room + 1}") == 2
    assert f"use max_new_tokens={room} or less" in capsys.readouterr().err
    assert run_main(monkeypatch, *arguments, f"max_new_tokens={room}") == 0


def test_a_checkpoint_without_a_tokenizer_needs_one_named(monkeypatch, capsys, tokenizer_directory) -> None:
    monkeypatch.setattr(inference, "load_model", lambda path, device: (repeating(), tiny(hidden_size=512), None))
    assert run_main(monkeypatch, "checkpoint=x") == 2
    assert "checkpoint=x has no tokenizer with it; add tokenizer=FILE" in capsys.readouterr().err
    assert run_main(monkeypatch, "checkpoint=x", f"tokenizer={tokenizer_directory}", "prompt=a") == 0
    assert capsys.readouterr().out.startswith("a")


def test_a_tokenizer_larger_than_the_model_is_refused(monkeypatch, capsys, tokenizer_directory) -> None:
    config = tiny(vocab_size=299)
    monkeypatch.setattr(inference, "load_model", lambda path, device: (Llama(config), config, tokenizer_directory))
    assert run_main(monkeypatch, "checkpoint=x") == 2
    assert "has 300 tokens, the model of checkpoint=x only 299" in capsys.readouterr().err


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
    model = Llama(tiny(**changes)).eval()
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
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=changes.get("kv_heads", 2),
            intermediate_size=48,
            max_position_embeddings=64,
            rms_norm_eps=1e-5,
            rope_parameters=rope,
            tie_word_embeddings=tied,
            eos_token_id=None,
            bos_token_id=1,
        )
    ).eval()
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


def test_greedy_text_of_a_huggingface_directory_is_that_of_transformers(
    tmp_path: Path, tokenizer_directory: Path, monkeypatch, capsys
) -> None:
    torch.manual_seed(0)
    other = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=64,
            initializer_range=0.3,
            tie_word_embeddings=False,
        )
    ).eval()
    other.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes((tokenizer_directory / "tokenizer.model").read_bytes())
    tokenizer = load_tokenizer(tmp_path)
    prompt = [tokenizer.bos_id, *tokenizer.encode_batch(["The river"])[0].tolist()]
    with torch.inference_mode():
        expected = other.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=40, do_sample=False
        )[0].tolist()
    assert len(set(expected[len(prompt) :])) > 5
    assert run_main(monkeypatch, f"checkpoint={tmp_path}", "device=cpu", "prompt=The river", "max_new_tokens=40") == 0
    assert capsys.readouterr().out == tokenizer.decode(expected) + "\n"


def test_ranks_that_share_a_model_give_the_texts_of_one(tmp_path: Path, tokenizer_directory: Path, monkeypatch) -> None:
    """Three prompts on two ranks in batches of two: one rank has more to do than the other, and neither hangs."""
    torch.manual_seed(0)
    other = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
    )
    other.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.model").write_bytes((tokenizer_directory / "tokenizer.model").read_bytes())
    prompts = ["The river", "a", "The miller's daughter counted"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    arguments = [
        f"checkpoint={tmp_path}/model",
        f"prompts={tmp_path}/in.jsonl",
        "device=cpu",
        "temperature=0.7",
        "batch_size=2",
        "max_new_tokens=20",
    ]
    assert run_main(monkeypatch, *arguments, f"output={tmp_path}/one.jsonl") == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "llama_train.generate", *arguments]
    done = subprocess.run(
        [*command, f"output={tmp_path}/two.jsonl"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"3 texts -> {tmp_path}/two.jsonl\n"
    assert (tmp_path / "two.jsonl").read_text() == (tmp_path / "one.jsonl").read_text()


def test_a_failure_on_one_rank_is_raised_after_its_passes() -> None:
    model = Llama(tiny())
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="is not finite; use an older checkpoint"):
        generate_together(model, [Row([1, 2], 3)], Peers(), batch_size=1)
