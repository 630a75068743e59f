"""llama-generate: what it prints and writes, what it refuses, and several ranks against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data_pipeline.tokenize import load_tokenizer, train_sentencepiece
from llama_foundation import compose
from llama_foundation.errors import ConfigError
from llama_train import inference
from llama_train.generate import GenerateConfig, main
from llama_train.model.llama import Llama
from tests.llama_train.tiny_llama import TEXT, random_llama, tiny_config


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


def repeating() -> Llama:
    """A model that gives the last token again: its layers add nothing, and every embedding is nearest to itself."""
    torch.manual_seed(0)
    model = Llama(tiny_config(hidden_size=512))
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
        return repeating(), tiny_config(hidden_size=512), tokenizer_directory

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
    monkeypatch.setattr(inference, "load_model", lambda path, device: (repeating(), tiny_config(hidden_size=512), None))
    assert run_main(monkeypatch, "checkpoint=x") == 2
    assert "checkpoint=x has no tokenizer with it; add tokenizer=FILE" in capsys.readouterr().err
    assert run_main(monkeypatch, "checkpoint=x", f"tokenizer={tokenizer_directory}", "prompt=a") == 0
    assert capsys.readouterr().out.startswith("a")


def test_a_tokenizer_larger_than_the_model_is_refused(monkeypatch, capsys, tokenizer_directory) -> None:
    config = tiny_config(vocab_size=299)
    monkeypatch.setattr(inference, "load_model", lambda path, device: (Llama(config), config, tokenizer_directory))
    assert run_main(monkeypatch, "checkpoint=x") == 2
    assert "has 300 tokens, the model of checkpoint=x only 299" in capsys.readouterr().err


def test_greedy_text_of_a_huggingface_directory_is_that_of_transformers(
    tmp_path: Path, tokenizer_directory: Path, monkeypatch, capsys
) -> None:
    other = random_llama()
    other.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes((tokenizer_directory / "tokenizer.model").read_bytes())
    tokenizer = load_tokenizer(tmp_path)
    prompt = [tokenizer.bos_id, *tokenizer.encode_batch(["The river"])[0].tolist()]
    with torch.inference_mode():
        expected = other.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=40, do_sample=False
        )[0].tolist()
    assert len(set(expected[len(prompt) :])) > 5
    capsys.readouterr()  # transformers looks for DeepSpeed, which speaks
    assert run_main(monkeypatch, f"checkpoint={tmp_path}", "device=cpu", "prompt=The river", "max_new_tokens=40") == 0
    assert capsys.readouterr().out == tokenizer.decode(expected) + "\n"


def test_ranks_that_share_a_model_give_the_texts_of_one(tmp_path: Path, tokenizer_directory: Path, monkeypatch) -> None:
    """Three prompts on two ranks in batches of two: one rank has more to do than the other, and neither hangs."""
    other = random_llama()
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
