"""Generation: greedy, nucleus sampling, and the command around them."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from data_pipeline.tokenize import load_tokenizer, train_sentencepiece
from llama_foundation import compose
from llama_foundation.errors import ConfigError, RunError
from llama_train import generate as command
from llama_train.config import ModelConfig
from llama_train.generate import GenerateConfig, generate, nucleus

TEXT = "The miller's daughter counted 17 lanterns, and then the river took them all. " * 20


class Table(torch.nn.Module):
    """A model whose next-token probabilities depend on the last token alone: row i of `probabilities`."""

    def __init__(self, probabilities: list[list[float]], context: int = 10**9) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(probabilities, dtype=torch.float64).log())
        self.longest = 0
        self.context = context

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        assert tokens.shape[0] == 1
        assert tokens.shape[1] <= self.context
        self.longest = max(self.longest, tokens.shape[1])
        return self.logits[tokens[:, -1:]]


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
    assert model.longest == 1500


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


def tiny(**changes: int) -> ModelConfig:
    sizes = {"vocab_size": 300, "hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_size": 48}
    return ModelConfig(**{"name": "tiny", "context": 64, **sizes, **changes})


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tokenizer_directory: Path):
    """A checkpoint whose model repeats the prompt's last token, and the arguments it was loaded with."""
    calls: list[tuple[str, str]] = []
    identity = torch.full((300, 300), 1e-6) + torch.eye(300)

    def load_model(path: str, device: str = "cpu"):
        calls.append((path, device))
        return Table(identity.tolist(), context=64), tiny(), tokenizer_directory

    monkeypatch.setattr(command, "load_model", load_model)
    return calls


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["llama-generate", *arguments])
    return command.main()


def test_the_command_prints_the_prompt_and_its_continuation(loaded, monkeypatch, capsys, tokenizer_directory) -> None:
    assert run_main(monkeypatch, "checkpoint=runs/a", "device=cpu", "prompt=The river", "max_new_tokens=3") == 0
    printed = capsys.readouterr()
    tokenizer = load_tokenizer(tokenizer_directory)
    ids = tokenizer.encode_batch(["The river"])[0].tolist()
    assert printed.out == tokenizer.decode([*ids, ids[-1], ids[-1], ids[-1]]) + "\n"
    assert printed.out.startswith("The river")
    assert printed.err == ""
    assert loaded[0] == ("runs/a", "cpu")


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
    model = Table([[1 / 300] * 300] * 300)
    monkeypatch.setattr(command, "load_model", lambda path, device: (model, tiny(), None))
    assert run_main(monkeypatch, "checkpoint=x") == 2
    assert "checkpoint=x has no tokenizer with it; add tokenizer=FILE" in capsys.readouterr().err
    assert run_main(monkeypatch, "checkpoint=x", f"tokenizer={tokenizer_directory}", "prompt=a") == 0
    assert capsys.readouterr().out.startswith("a")


def test_a_tokenizer_larger_than_the_model_is_refused(monkeypatch, capsys, tokenizer_directory) -> None:
    monkeypatch.setattr(command, "load_model", lambda path, device: (None, tiny(vocab_size=299), tokenizer_directory))
    assert run_main(monkeypatch, "checkpoint=x") == 2
    assert "has 300 tokens, the model of checkpoint=x only 299" in capsys.readouterr().err


def test_greedy_text_of_a_huggingface_directory_is_that_of_transformers(
    tmp_path: Path, tokenizer_directory: Path, monkeypatch, capsys
) -> None:
    transformers = pytest.importorskip("transformers")
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
