import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from data_pipeline.tokenize import load_tokenizer, train_byte_level
from llama_foundation.errors import CheckpointError
from llama_train.checkpoint.huggingface import export_huggingface, import_native
from llama_train.checkpoint.load import load_model, open_weights
from llama_train.checkpoint.meta import export_meta
from llama_train.checkpoint.restore import open_checkpoint, restore
from llama_train.checkpoint.store import CheckpointStore
from llama_train.config import ModelConfig, RopeScaling
from llama_train.decode import Row, generate_together
from llama_train.engine.engine import Chunk
from llama_train.model.names import parameter_shapes
from llama_train.peers import Peers

LLAMA_1 = ModelConfig(
    name="x", vocab_size=259, hidden_size=32, layers=2, heads=4, kv_heads=4, ffn_size=88, context=64, norm_epsilon=1e-6
)
MODELS = {
    "llama 1": LLAMA_1,
    "llama 2": dataclasses.replace(LLAMA_1, kv_heads=2, norm_epsilon=1e-5, context=128),
    "llama 3": dataclasses.replace(LLAMA_1, kv_heads=1, vocab_size=300, rope_theta=500000.0),
    "llama 3.1": dataclasses.replace(
        LLAMA_1,
        kv_heads=2,
        rope_theta=500000.0,
        rope_scaling=RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=16),
    ),
    "llama 3.2, tied": dataclasses.replace(LLAMA_1, kv_heads=2, tied_embeddings=True),
}


def save_random(directory, config, files=None):
    """A checkpoint as a run leaves it, of two ranks' rows, with a kind of optimizer state."""
    generator = torch.Generator().manual_seed(1)
    chunks = []
    for name, shape in parameter_shapes(config).items():
        whole = torch.randn(shape, generator=generator) * 0.2 + ("norm" in name)
        middle = shape[0] // 2
        rest = (0,) * (len(shape) - 1)
        for kind in ("weights", "optimizer/exp_avg"):
            chunks.append(Chunk(f"{kind}/{name}", shape, (0, *rest), whole[:middle]))
            chunks.append(Chunk(f"{kind}/{name}", shape, (middle, *rest), whole[middle:]))
    CheckpointStore(directory).save(3, chunks, {"step": 3, "model": dataclasses.asdict(config)}, files)
    return directory


@pytest.fixture(scope="module")
def tokenizer_model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    (directory / "text.txt").write_text("the quick brown fox jumps over the lazy dog 12345\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "text.txt"),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return directory / "tokenizer.model"


@pytest.mark.parametrize("name", MODELS)
def test_an_export_gives_transformers_the_same_logits_and_comes_back_bitwise(tmp_path, name):
    config = MODELS[name]
    save_random(tmp_path / "run" / "checkpoints", config)
    ours, _, _ = load_model(tmp_path / "run")
    export_huggingface(open_weights(tmp_path / "run"), tmp_path / "hf", max_shard_bytes=20_000)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert theirs.dtype == torch.float32
    tokens = torch.randint(config.vocab_size, (2, 48), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, found = ours(tokens), theirs(tokens).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    import_native(open_weights(tmp_path / "hf"), tmp_path / "back")
    checkpoint, original = open_checkpoint(tmp_path / "back"), open_checkpoint(tmp_path / "run")
    assert checkpoint.step == 0
    assert dataclasses.replace(checkpoint.model_config(), name="x", initial_std=0.02) == config
    assert set(checkpoint.tensors) == {name for name in original.tensors if name.startswith("weights/")}
    for tensor, entry in checkpoint.tensors.items():
        zero = (0,) * len(entry.shape)
        assert torch.equal(checkpoint.read(tensor, zero, entry.shape), original.read(tensor, zero, entry.shape))


def test_what_transformers_saves_is_loaded_with_the_same_logits(tmp_path):
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=99,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    )
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    ours, config, tokenizer = load_model(tmp_path / "hf", dtype=torch.float64)
    assert tokenizer is None
    assert config.layers == 2
    assert next(ours.parameters()).dtype == torch.float64
    tokens = torch.randint(99, (1, 20))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs.double()(tokens).logits, rtol=0, atol=1e-6)


def test_exported_files_are_complete_and_the_tokenizer_agrees(tmp_path, tokenizer_model):
    config = dataclasses.replace(LLAMA_1, vocab_size=300)
    save_random(tmp_path / "checkpoints", config, {"tokenizer/tokenizer.model": tokenizer_model})
    _, _, directory = load_model(tmp_path / "checkpoints")
    assert (directory / "tokenizer.model").read_bytes() == tokenizer_model.read_bytes()
    export_huggingface(open_weights(tmp_path / "checkpoints"), tmp_path / "hf", torch.bfloat16)
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    processor = sentencepiece.SentencePieceProcessor(str(tokenizer_model))
    text = "the dog 42 über 🦙\n  fox"
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").encode(text) == [1, *processor.encode(text)]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert model.dtype == torch.bfloat16
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (1, 2)
    # and back: the tokenizer travels along
    import_native(open_weights(tmp_path / "hf"), tmp_path / "back")
    assert load_model(tmp_path / "back")[2] == tmp_path / "back" / "tokenizer"
    assert (tmp_path / "back/tokenizer/tokenizer.model").read_bytes() == tokenizer_model.read_bytes()


@pytest.mark.parametrize("name", ["llama 1", "llama 2", "llama 3", "llama 3.1"])
def test_greedy_text_is_the_same_from_a_checkpoint_from_transformers_and_from_metas_files(
    tmp_path, name, tokenizer_model
):
    config = dataclasses.replace(MODELS[name], vocab_size=300)
    if config.rope_scaling:  # Meta's code knows one original context; the exponents differ enough for these lengths
        config = dataclasses.replace(config, rope_scaling=RopeScaling(), rope_theta=500000.0)
    save_random(tmp_path / "run", config, {"tokenizer/tokenizer.model": tokenizer_model})
    export_huggingface(open_weights(tmp_path / "run"), tmp_path / "hf")
    export_meta(open_weights(tmp_path / "run"), tmp_path / "meta", model_parallel=config.kv_heads)
    import_native(open_weights(tmp_path / "meta"), tmp_path / "back")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    prompt = tokenizer.encode("the quick brown fox")
    with torch.no_grad():
        output = theirs.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=299)[0]
    expected = [token for token in output.tolist()[len(prompt) :] if token != 299]
    assert len(set(expected)) > 3
    for directory in ("run", "hf", "meta", "back"):
        model, _, _ = load_model(tmp_path / directory)
        (found,) = generate_together(model, [Row(prompt, 24, stop_ids=(299,))], Peers(), batch_size=1)
        assert tokenizer.decode(found) == tokenizer.decode(expected), directory
        assert found == expected, directory


def test_shards_are_bounded_and_indexed_and_safetensors_reads_them(tmp_path):
    save_random(tmp_path / "checkpoints", LLAMA_1)
    checkpoint = open_checkpoint(tmp_path / "checkpoints")
    wrote = []
    export_huggingface(checkpoint, tmp_path / "hf", max_shard_bytes=30_000, wrote=wrote.append)
    weight_map = json.loads((tmp_path / "hf/model.safetensors.index.json").read_text())["weight_map"]
    assert list(weight_map) == list(parameter_shapes(LLAMA_1))
    total = 0
    for name in sorted(set(weight_map.values())):
        tensors = load_file(tmp_path / "hf" / name)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= 30_000 or len(tensors) == 1
        total += size
        for key, tensor in tensors.items():
            assert weight_map[key] == name
            assert torch.equal(tensor, checkpoint.read("weights/" + key, (0,) * tensor.dim(), tuple(tensor.shape)))
    assert total == sum(wrote)


STREAM = """
import sys, torch
from pathlib import Path
from llama_train.checkpoint.huggingface import export_huggingface, import_native
from llama_train.checkpoint.load import open_weights

def growth(convert):  # in MiB; not ru_maxrss, which a child process inherits
    def status(field):
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) / 1024
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    before = status("VmRSS")
    convert()
    return status("VmHWM") - before

output = Path(sys.argv[2])
export_huggingface(open_weights(sys.argv[1]), output / "warm", torch.bfloat16)  # what imports and buffers cost
import_native(open_weights(output / "warm"), output / "warm_native")
print(growth(lambda: export_huggingface(open_weights(sys.argv[3]), output / "hf")))
print(growth(lambda: import_native(open_weights(output / "hf"), output / "native")))
"""


def test_a_large_tensor_is_streamed_in_bounded_memory(tmp_path):
    """An embedding and a head of 229 MiB each; a conversion may hold a piece of 64 MiB and what reading it takes."""
    large = dataclasses.replace(
        LLAMA_1, vocab_size=100_000, hidden_size=1000, heads=4, kv_heads=4, layers=1, ffn_size=8
    )
    save_random(tmp_path / "small", LLAMA_1)

    def chunks():
        for name, shape in parameter_shapes(large).items():
            yield Chunk("weights/" + name, shape, (0,) * len(shape), torch.ones(1).expand(shape))

    CheckpointStore(tmp_path / "large").save(0, chunks(), {"model": dataclasses.asdict(large)})
    output = subprocess.run(
        [sys.executable, "-c", STREAM, tmp_path / "small", tmp_path, tmp_path / "large"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    exported, imported = map(float, output.split())
    assert exported < 150, f"{exported:.0f} MiB"
    assert imported < 150, f"{imported:.0f} MiB"
    assert (tmp_path / "hf/model.safetensors").stat().st_size > 480_000_000
    shutil.rmtree(tmp_path)


def write_hf(directory, config, change=lambda tensors: tensors, name="model.safetensors"):
    save_random(directory / "native", config)
    export_huggingface(open_weights(directory / "native"), directory / "hf")
    tensors = load_file(directory / "hf" / "model.safetensors")
    (directory / "hf" / "model.safetensors").unlink()
    save_file({key: value.contiguous() for key, value in change(tensors).items()}, directory / "hf" / name)
    return directory / "hf"


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


def test_missing_and_extra_tensors_are_named(tmp_path):
    bad = write_hf(tmp_path / "a", LLAMA_1, lambda t: without(t, "model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight is missing in the checkpoint"):
        import_native(open_weights(bad), tmp_path / "out")
    bad = write_hf(tmp_path / "b", LLAMA_1, lambda t: t | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)})
    with pytest.raises(CheckpointError, match=r"q_proj\.bias is of shape \[32\] in the checkpoint and missing in the"):
        import_native(open_weights(bad), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_old_rotary_buffers_are_ignored(tmp_path):
    buffers = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in (0, 1)}
    good = write_hf(tmp_path, LLAMA_1, lambda t: t | buffers)
    import_native(open_weights(good), tmp_path / "out")
    assert not any("rotary" in name for name in open_checkpoint(tmp_path / "out").tensors)


def test_a_tied_head_stored_twice_is_read_once_and_must_be_the_same(tmp_path):
    tied = MODELS["llama 3.2, tied"]
    good = write_hf(tmp_path / "a", tied, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    assert "weights/lm_head.weight" not in open_weights(good).tensors
    bad = write_hf(tmp_path / "b", tied, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        open_weights(bad)


def test_pickles_are_refused_by_name(tmp_path):
    directory = write_hf(tmp_path, LLAMA_1, name="other.safetensors")
    (directory / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: a pickle, which can run code"):
        open_weights(directory)


def test_missing_and_damaged_safetensors_are_named(tmp_path):
    save_random(tmp_path / "native", LLAMA_1)
    export_huggingface(open_weights(tmp_path / "native"), tmp_path / "hf", max_shard_bytes=30_000)
    second = sorted((tmp_path / "hf").glob("model-00002*"))[0]
    data = second.read_bytes()
    second.write_bytes(data[:-10])
    with pytest.raises(CheckpointError, match=r"model-00002.*damaged or not a safetensors file"):
        open_weights(tmp_path / "hf")
    second.unlink()
    with pytest.raises(CheckpointError, match=r"model-00002.*missing; the model is not complete"):
        open_weights(tmp_path / "hf")
    index = tmp_path / "hf/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../native/x.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"weight_map names '\.\./native"):
        open_weights(tmp_path / "hf")


def test_a_hugging_face_directory_restores_into_an_engines_rectangles(tmp_path):
    """What init_from does: weights only, cut as this rank has them."""
    hf = write_hf(tmp_path, LLAMA_1)
    shapes = {"weights/" + name: shape for name, shape in parameter_shapes(LLAMA_1).items()}
    targets = [
        Chunk(name, shape, (3,) + (0,) * (len(shape) - 1), torch.zeros(5, *shape[1:])) for name, shape in shapes.items()
    ]
    original = open_checkpoint(tmp_path / "native")
    for found in restore(open_weights(hf), targets):
        assert torch.equal(found.tensor, original.read(found.name, found.offsets, tuple(found.tensor.shape)))


def test_a_failed_export_leaves_nothing(tmp_path):
    save_random(tmp_path / "native", LLAMA_1)
    source = open_weights(tmp_path / "native")
    step = tmp_path / "native" / "step-00000003"
    data = bytearray((step / "rank-00000.bin").read_bytes())
    data[-100] ^= 1  # in the optimizer's part of the last tensor: not read
    (step / "rank-00000.bin").write_bytes(data)
    export_huggingface(source, tmp_path / "good")
    data[100] ^= 1  # in the embedding
    (step / "rank-00000.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        export_huggingface(source, tmp_path / "bad")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "native"]
    with pytest.raises(CheckpointError, match="already exists and is not empty"):
        export_huggingface(source, tmp_path / "good")


def test_state_that_describes_no_model_is_refused(tmp_path):
    tensor = Chunk("weights/a", (1,), (0,), torch.ones(1))
    for state, message in (
        ({}, r"state\.model is missing"),
        ({"model": {"hidden": 3}}, r"state\.model: "),
        ({"model": {"name": "${oc.env:HOME}"}}, "interpolation"),
        ({"model": dataclasses.asdict(LLAMA_1) | {"heads": 5}}, r"model\.heads=5 does not divide"),
        (
            {"model": dataclasses.asdict(LLAMA_1)},
            r"checkpoint of another model: weights/model\.embed_tokens",
        ),
    ):
        CheckpointStore(tmp_path).save(1, [tensor], state)
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path)


def test_a_byte_level_tokenizer_is_exported_with_every_end_of_text(tmp_path):
    ranks = train_byte_level(["the quick brown fox jumps over the lazy dog 12345\n"] * 20, tmp_path / "ranks", 540)
    config = dataclasses.replace(LLAMA_1, vocab_size=540)
    save_random(tmp_path / "checkpoints", config, {"tokenizer/tokenizer.model": ranks})
    export_huggingface(open_weights(tmp_path / "checkpoints"), tmp_path / "hf")
    text = "the dog 42 über 🦙\n  fox"
    expected = [284, *load_tokenizer(ranks).encode_batch([text])[0].tolist()]
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").encode(text) == expected
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (284, [285, 292, 293])
    # a tokenizer.json alone travels along as it is
    json_file = tmp_path / "hf" / "tokenizer.json"
    save_random(tmp_path / "with_json", config, {"tokenizer/tokenizer.json": json_file})
    assert load_tokenizer(load_model(tmp_path / "with_json")[2]).encode_batch([text])[0].tolist() == expected[1:]
    export_huggingface(open_weights(tmp_path / "with_json"), tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == json_file.read_bytes()
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert (again.encode(text), again.eos_token) == (expected, "<|end_of_text|>")
    generation = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [285, 292, 293]
