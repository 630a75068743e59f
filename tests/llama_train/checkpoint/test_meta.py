import dataclasses
import json
import os
import subprocess
import sys

import meta_reference
import pytest
import torch
from meta_reference import random_weights, split

from llama_foundation.errors import CheckpointError, ConfigError
from llama_train.checkpoint.huggingface import export_huggingface, import_native
from llama_train.checkpoint.load import load_model, open_weights
from llama_train.checkpoint.meta import export_meta
from llama_train.checkpoint.restore import open_checkpoint
from llama_train.checkpoint.store import CheckpointStore
from llama_train.config import ModelConfig, RopeScaling
from llama_train.engine.engine import Chunk
from llama_train.model.names import parameter_shapes

VOCABULARY = 64
BASE = {"dim": 32, "n_layers": 2, "n_heads": 4, "norm_eps": 1e-5, "multiple_of": 32}
LLAMA_3 = BASE | {"n_kv_heads": 2, "rope_theta": 500000.0, "multiple_of": 16, "ffn_dim_multiplier": 1.3}
# name: params.json, width of the feed-forward layer, files, axis along which they split the embedding
RELEASES = {
    "llama 1, one file": (BASE | {"norm_eps": 1e-6, "vocab_size": -1}, 96, 1, 1),
    "llama 1, two files": (BASE | {"norm_eps": 1e-6, "vocab_size": -1}, 96, 2, 1),
    "llama 2, grouped": (BASE | {"n_kv_heads": 2, "vocab_size": -1}, 96, 2, 1),
    "llama 3": (LLAMA_3 | {"vocab_size": VOCABULARY}, 112, 2, 0),
    "llama 3.1": (LLAMA_3 | {"vocab_size": VOCABULARY, "use_scaled_rope": True}, 112, 2, 0),
}


def save_meta(directory, params, weights, files=1, embedding_axis=0):
    directory.mkdir(parents=True)
    (directory / "params.json").write_text(json.dumps(params))
    for number, part in enumerate(split(weights, files, embedding_axis)):
        torch.save(part, directory / f"consolidated.{number:02d}.pth")
    return directory


def some_tokens(count=2, length=40):
    return torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("release", RELEASES)
def test_metas_files_give_the_logits_of_a_model_with_neighbouring_rotary_pairs(tmp_path, release):
    params, ffn, files, axis = RELEASES[release]
    weights = random_weights(params, VOCABULARY, ffn)
    if files == 1:
        weights["rope.freqs"] = torch.ones(4)
    model, config, _ = load_model(save_meta(tmp_path / "7B", params, weights, files, axis), dtype=torch.float64)
    assert (config.vocab_size, config.ffn_size, config.tied_embeddings) == (VOCABULARY, ffn, False)
    expected = meta_reference.logits(params, weights, some_tokens())
    with torch.no_grad():
        found = model(some_tokens())
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("release", RELEASES)
def test_what_is_written_for_meta_is_what_was_read_from_it(tmp_path, release):
    params, ffn, files, axis = RELEASES[release]
    weights = random_weights(params, VOCABULARY, ffn)
    there = save_meta(tmp_path / "meta", params, weights, files, axis)
    import_native(open_weights(there), tmp_path / "native")
    export_meta(open_weights(tmp_path / "native"), tmp_path / "back", model_parallel=files)
    for number, part in enumerate(split(weights, files, axis)):
        # without mmap, as Meta's own code loads it
        found = torch.load(tmp_path / f"back/consolidated.{number:02d}.pth", weights_only=True)
        assert set(found) == set(part)
        assert all(torch.equal(found[name], tensor) for name, tensor in part.items())
    written = json.loads((tmp_path / "back/params.json").read_text())
    for key in params.keys() - {"vocab_size", "multiple_of", "ffn_dim_multiplier"}:
        assert written[key] == params[key], key
    assert open_weights(tmp_path / "back").model_config().ffn_size == ffn


def save_random(directory, config, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    chunks = [
        Chunk(f"weights/{name}", shape, (0,) * len(shape), (torch.randn(shape, generator=generator) * 0.2).to(dtype))
        for name, shape in parameter_shapes(config).items()
    ]
    CheckpointStore(directory).save(1, chunks, {"model": dataclasses.asdict(config)})
    return directory


TIED = ModelConfig(
    name="meta",
    vocab_size=VOCABULARY,
    hidden_size=32,
    layers=2,
    heads=4,
    kv_heads=2,
    ffn_size=80,
    context=131072,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(factor=32.0),
    tied_embeddings=True,
)


@pytest.mark.parametrize("files", [1, 2])
def test_a_tied_model_has_its_output_matrix_in_metas_files_and_is_tied_again_when_read(tmp_path, files):
    save_random(tmp_path / "native", TIED, torch.bfloat16)
    export_meta(open_weights(tmp_path / "native"), tmp_path / "meta", model_parallel=files)
    part = torch.load(tmp_path / "meta/consolidated.00.pth", weights_only=True)
    assert torch.equal(part["output.weight"], part["tok_embeddings.weight"])
    assert part["output.weight"].dtype == torch.bfloat16
    back = open_weights(tmp_path / "meta")
    assert dataclasses.replace(back.model_config(), name="meta") == TIED
    original = open_checkpoint(tmp_path / "native")
    assert set(back.tensors) == set(original.tensors)
    for name, entry in original.tensors.items():
        zero = (0,) * len(entry.shape)
        assert torch.equal(back.read(name, zero, entry.shape), original.read(name, zero, entry.shape))


def test_any_rectangle_of_a_merged_tensor_is_what_it_is_in_the_whole(tmp_path):
    params, ffn, files, axis = RELEASES["llama 2, grouped"]
    source = open_weights(save_meta(tmp_path / "m", params, random_weights(params, VOCABULARY, ffn), files, axis))
    generator = torch.Generator().manual_seed(3)
    for name, entry in source.tensors.items():
        whole = source.read(name, (0,) * len(entry.shape), entry.shape)
        for _ in range(5):
            offsets = tuple(int(torch.randint(size, (), generator=generator)) for size in entry.shape)
            lengths = tuple(
                int(torch.randint(1, size - o + 1, (), generator=generator))
                for size, o in zip(entry.shape, offsets, strict=True)
            )
            part = whole[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))]
            assert torch.equal(source.read(name, offsets, lengths), part), (name, offsets, lengths)


@pytest.mark.parametrize("counted", [True, False])
def test_key_value_heads_that_are_stored_twice_are_read_once(tmp_path, counted):
    """Llama 3.1 405B for 16 ranks: 8 heads, each on two of them, and n_kv_heads=16 or 8 in params.json."""
    params = BASE | {"n_kv_heads": 2}
    weights = random_weights(params, VOCABULARY, 96)
    doubled = {
        name: tensor.unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
        if ".wk." in name or ".wv." in name
        else tensor
        for name, tensor in weights.items()
    }
    directory = save_meta(tmp_path / "m", params | ({"n_kv_heads": 4} if counted else {}), doubled, 4)
    model, config, _ = load_model(directory, dtype=torch.float64)
    assert config.kv_heads == 2
    with torch.no_grad():
        found = model(some_tokens())
    torch.testing.assert_close(found, meta_reference.logits(params, weights, some_tokens()), rtol=0, atol=1e-10)
    part = torch.load(directory / "consolidated.03.pth")
    part["layers.1.attention.wv.weight"][3, 3] += 1
    torch.save(part, directory / "consolidated.03.pth")
    if counted:  # then they are four heads indeed
        assert open_weights(directory).model_config().kv_heads == 4
    else:
        with pytest.raises(CheckpointError, match=r"layers\.1\.attention\.wv.*the 2 copies of key/value head 1 differ"):
            load_model(directory)


def test_the_tokenizer_is_found_beside_or_above_the_files(tmp_path):
    params, ffn, *_ = RELEASES["llama 3"]
    directory = save_meta(tmp_path / "8B", params, random_weights(params, VOCABULARY, ffn))
    assert open_weights(directory).tokenizer_files() == {}
    (tmp_path / "tokenizer.model").write_bytes(b"above")
    assert open_weights(directory).tokenizer_files() == {"tokenizer.model": tmp_path / "tokenizer.model"}
    (directory / "tokenizer.model").write_bytes(b"beside")
    assert open_weights(directory).tokenizer_files() == {"tokenizer.model": directory / "tokenizer.model"}


def test_files_that_do_not_fit_together_are_named(tmp_path):
    params, ffn, _, axis = RELEASES["llama 2, grouped"]
    weights = random_weights(params, VOCABULARY, ffn)
    directory = save_meta(tmp_path / "m", params, weights, 2, axis)
    second = directory / "consolidated.01.pth"
    os.rename(second, directory / "consolidated.02.pth")
    with pytest.raises(CheckpointError, match=r"consolidated\.01\.pth: missing; the model is incomplete"):
        open_weights(directory)
    (directory / "consolidated.02.pth").unlink()
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.self_attn\.q_proj|embed_tokens"):
        import_native(open_weights(directory), tmp_path / "out")
    part = split(weights, 2, axis)[1]
    del part["layers.1.ffn_norm.weight"]
    torch.save(part, second)
    with pytest.raises(CheckpointError, match=r"consolidated\.01\.pth: layers\.1\.ffn_norm\.weight is not in every"):
        open_weights(directory)
    part = split(weights, 2, axis)[1]
    part["layers.1.attention.wo.weight"] = part["layers.1.attention.wo.weight"].bfloat16()
    torch.save(part, second)
    with pytest.raises(CheckpointError, match=r"layers\.1\.attention\.wo\.weight differs in dtype or shape"):
        open_weights(directory)
    extra = weights | {"layers.0.attention.wq.bias": torch.zeros(32)}
    with pytest.raises(CheckpointError, match=r"layers\.0\.attention\.wq\.bias is in the files and not in a Llama"):
        open_weights(save_meta(tmp_path / "extra", params, extra))


def test_a_number_of_files_that_does_not_divide_the_model_is_refused(tmp_path):
    save_random(tmp_path / "native", TIED)
    with pytest.raises(ConfigError, match=r"model_parallel=4 does not divide kv_heads=2 of the model; use one of 1, 2"):
        export_meta(open_weights(tmp_path / "native"), tmp_path / "meta", model_parallel=4)
    odd = dataclasses.replace(TIED, rope_scaling=RopeScaling(low_freq_factor=2.0))
    save_random(tmp_path / "odd", odd)
    with pytest.raises(ConfigError, match=r"low_freq_factor=2\.0: params\.json cannot say so"):
        export_meta(open_weights(tmp_path / "odd"), tmp_path / "meta")
    assert not (tmp_path / "meta").exists()


def test_from_meta_to_hugging_face_transformers_has_the_reference_logits(tmp_path):
    from transformers import AutoModelForCausalLM

    params, ffn, files, axis = RELEASES["llama 3.1"]
    weights = random_weights(params, VOCABULARY, ffn)
    export_huggingface(open_weights(save_meta(tmp_path / "meta", params, weights, files, axis)), tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").double()
    with torch.no_grad():
        found = theirs(some_tokens()).logits
    torch.testing.assert_close(found, meta_reference.logits(params, weights, some_tokens()), rtol=0, atol=1e-5)


MEMORY = """
import sys, torch
from pathlib import Path
from llama_train.checkpoint.huggingface import import_native
from llama_train.checkpoint.load import open_weights
from llama_train.checkpoint.meta import export_meta
from llama_train.checkpoint.restore import pieces

def growth(convert):  # in MiB; not ru_maxrss, which a child process inherits
    def status(field):
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) / 1024
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    before = status("VmRSS")
    convert()
    return status("VmHWM") - before
"""

CONVERT = """
output = Path(sys.argv[1])
import_native(open_weights(output / "small"), output / "warm")  # what imports and buffers cost
export_meta(open_weights(output / "warm"), output / "warm_meta")
print(growth(lambda: import_native(open_weights(output / "large"), output / "native")))
print(growth(lambda: export_meta(open_weights(output / "native"), output / "meta")))
"""

SAMPLE = """
def sample():  # a piece of every 50th tensor, and all pieces of one
    source = open_weights(sys.argv[1])
    print(source.model_config())
    print(sum(torch.Size(e.shape).numel() for e in source.tensors.values()))
    for number, (name, entry) in enumerate(source.tensors.items()):
        rectangles = list(pieces(entry))
        for offsets, lengths in rectangles if number == 7 else rectangles[-1:] if number % 50 == 0 else ():
            source.read(name, offsets, lengths)
print(growth(sample))
"""


def run_script(script, argument):
    arguments = [sys.executable, "-c", MEMORY + script, str(argument)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


def save_without_bytes(directory, params, shapes, files):
    """Files of the right shapes and sizes that are one large hole each."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    directory.mkdir()
    (directory / "params.json").write_text(json.dumps(params))
    with FakeTensorMode():
        part = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    for number in range(files):
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(part, directory / f"consolidated.{number:02d}.pth")
    return directory


def test_a_conversion_of_large_tensors_is_streamed_in_bounded_memory(tmp_path):
    """Two matrices of 248 MiB; a conversion may hold a few pieces of 64 MiB, and as much mapped."""
    params = BASE | {"dim": 1000, "n_layers": 1, "multiple_of": 8}
    shapes = {name: tensor.shape for name, tensor in random_weights(params, 4, 2672).items()}
    shapes["tok_embeddings.weight"] = shapes["output.weight"] = torch.Size((130_000, 1000))
    save_without_bytes(tmp_path / "large", params, shapes, 1)
    with open(tmp_path / "large/consolidated.00.pth", "r+b") as file:
        file.seek(1_000_000)  # in the embedding, which is not tied then
        file.write(b"x" * 100)
    small, ffn, *_ = RELEASES["llama 3"]
    save_meta(tmp_path / "small", small, random_weights(small, VOCABULARY, ffn))
    imported, exported, _ = run_script(CONVERT, tmp_path)
    assert (tmp_path / "meta/consolidated.00.pth").stat().st_size > 520_000_000
    assert float(imported) < 320, f"{imported} MiB"
    assert float(exported) < 150, f"{exported} MiB"


def test_llama_3_1_405b_opens_and_is_read_in_bounded_memory(tmp_path):
    """Four files of 203 GB that are holes: the true shapes, no bytes."""
    dim, layers, files = 16384, 126, 4
    params = BASE | {"dim": dim, "n_layers": layers, "n_heads": 128, "n_kv_heads": 8, "rope_theta": 500000.0}
    params |= {"vocab_size": 128256, "multiple_of": 4096, "ffn_dim_multiplier": 1.2, "use_scaled_rope": True}
    # by columns, so that zeros are not taken for tied embeddings
    shapes = {"tok_embeddings.weight": (128256, dim // files), "output.weight": (128256 // files, dim)}
    for layer in range(layers):
        at = f"layers.{layer}."
        rows = {"q": dim, "k": 8 * 128, "v": 8 * 128}
        shapes |= {at + f"attention.w{kind}.weight": (rows[kind] // files, dim) for kind in rows}
        shapes |= {at + f"feed_forward.w{n}.weight": (53248 // files, dim) for n in (1, 3)}
        shapes |= {
            at + "attention.wo.weight": (dim, dim // files),
            at + "feed_forward.w2.weight": (dim, 53248 // files),
        }
        shapes |= {at + "attention_norm.weight": (dim,), at + "ffn_norm.weight": (dim,)}
    shapes["norm.weight"] = (dim,)
    directory = save_without_bytes(tmp_path / "405B", params, shapes, files)
    config, count, grown, _ = run_script(SAMPLE, directory)
    assert "kv_heads=8" in config
    assert int(count) > 403_000_000_000
    assert float(grown) < 350, f"{grown} MiB"
