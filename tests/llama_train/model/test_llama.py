"""The maths against transformers' Llama, against each document run alone, and against itself in pieces."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

from llama_train.config import ModelConfig, RopeScaling
from llama_train.model import llama
from llama_train.model.initialize import initialize
from llama_train.model.llama import IGNORE, Llama, rotary_frequencies, rotation

# Weights large enough that every head attends to something and every logit is of order 1.
_SMALL = {"layers": 3, "context": 128, "initial_std": 0.1}
# Of 64 tokens, so that of the 8 frequencies of a head some are kept, one is interpolated and the rest are slowed.
_SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=64)
SHAPES = {
    "llama1": ModelConfig("llama1", 160, 64, heads=4, kv_heads=4, ffn_size=172, norm_epsilon=1e-6, **_SMALL),
    "llama2": ModelConfig("llama2", 160, 64, heads=8, kv_heads=2, ffn_size=224, **_SMALL),
    "llama3": ModelConfig("llama3", 352, 96, heads=6, kv_heads=2, ffn_size=336, rope_theta=5e5, **_SMALL),
    "llama3.1": ModelConfig(
        "llama3.1", 352, 64, heads=4, kv_heads=1, ffn_size=224, rope_theta=5e2, rope_scaling=_SCALING, **_SMALL
    ),
    "tied": ModelConfig("tied", 160, 64, heads=4, kv_heads=2, ffn_size=172, tied_embeddings=True, **_SMALL),
}


def build(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Llama:
    model = Llama(config).to(dtype)
    initialize(model, config, seed=7)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():  # norms of 1 would hide a norm in the wrong place
        if name.endswith("norm.weight"):
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    return model


def build_theirs(ours: Llama, config: ModelConfig, attention: str = "eager") -> LlamaForCausalLM:
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_context,
        }
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.ffn_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.context,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters=rope,
            tie_word_embeddings=config.tied_embeddings,
            attn_implementation=attention,
        )
    )
    theirs = theirs.to(next(ours.parameters()).dtype)
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=not config.tied_embeddings)
    assert not unexpected
    assert missing == (["lm_head.weight"] if config.tied_embeddings else [])
    return theirs


def in_float64(monkeypatch: pytest.MonkeyPatch, config: ModelConfig) -> None:
    """Make transformers' norm and rotary embedding, which always compute in float32, exact enough to compare with."""

    def norm(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, self.variance_epsilon)

    def rotary(self, x, position_ids):
        pair = torch.arange(config.head_dim // 2, dtype=torch.float64)
        turns = torch.polar(
            torch.ones(()).double(), position_ids[..., None] * config.rope_theta ** (-2 * pair / config.head_dim)
        )
        return torch.cat([turns.real] * 2, -1), torch.cat([turns.imag] * 2, -1)

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", rotary)


def random_tokens(config: ModelConfig, rows: int, length: int) -> torch.Tensor:
    return torch.randint(config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_logits_equal_transformers(name):
    config = SHAPES[name]
    ours = build(config)
    tokens = random_tokens(config, 2, 100)
    logits = ours(tokens)
    assert logits.std() > 0.3
    difference = (logits - build_theirs(ours, config)(tokens).logits).abs().max()
    assert difference < 1e-5


@pytest.mark.parametrize("name", SHAPES)
def test_loss_and_gradients_equal_transformers_in_float64(name, monkeypatch):
    config = dataclasses.replace(SHAPES[name], rope_scaling=None)
    in_float64(monkeypatch, config)
    ours = build(config, torch.float64)
    theirs = build_theirs(ours, config, attention="sdpa")
    tokens = random_tokens(config, 2, 48)
    labels = tokens.roll(-1, 1)
    labels[0, 10:15] = IGNORE
    loss_sum, count = ours(tokens, labels)
    assert count == 2 * 48 - 5
    loss_sum.backward()
    expected = F.cross_entropy(theirs(tokens).logits.flatten(0, 1), labels.flatten(), reduction="sum")
    expected.backward()
    torch.testing.assert_close(loss_sum, expected, rtol=1e-13, atol=0)
    theirs_by_name = dict(theirs.named_parameters())
    for parameter_name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, theirs_by_name[parameter_name].grad, rtol=0, atol=1e-10, msg=parameter_name
        )


@pytest.mark.parametrize("name", ["llama3.1", "llama2"])
def test_rotary_frequencies_equal_transformers_at_full_size(name):
    scaling = RopeScaling() if name == "llama3.1" else None
    config = dataclasses.replace(SHAPES[name], hidden_size=4096, heads=32, rope_theta=5e5, rope_scaling=scaling)
    theirs = LlamaConfig(
        hidden_size=4096,
        num_attention_heads=32,
        max_position_embeddings=131072,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0 if scaling else 1.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, torch.device("cpu"))
    torch.testing.assert_close(torch.tensor(rotary_frequencies(config)), expected, rtol=2e-6, atol=0)


def test_scaled_frequencies_by_hand():
    # Waves of 16,384 tokens (slowed), 1,024 (kept) and 4,096: two in the context, (2-1)/(4-1) of the way to kept.
    scaling = RopeScaling()
    turn = 2 * torch.pi
    assert llama.scaled_frequency(turn / 16384, scaling) == turn / 16384 / 8
    assert llama.scaled_frequency(turn / 1024, scaling) == turn / 1024
    assert llama.scaled_frequency(turn / 4096, scaling) == pytest.approx(turn / 4096 * (2 / 3 / 8 + 1 / 3), rel=1e-14)


def test_rotation_is_exact_far_from_the_start():
    config = SHAPES["llama1"]
    cos, sin = rotation(torch.tensor([[1_000_003]]), config, torch.float32)
    # cos(1000003) and sin(1000003) radians, the first pair's frequency being 1, by mpmath with 50 digits.
    assert cos[0, 0, 0].item() == pytest.approx(-0.87798649158, abs=1e-7)
    assert sin[0, 0, 0].item() == pytest.approx(0.478685408796, abs=1e-7)


DOCUMENTS = (23, 1, 40, 36)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", ["llama1", "llama2", "llama3", "llama3.1"])
@torch.no_grad()
def test_packed_documents_equal_each_document_alone(name, dtype, tolerance):
    config = SHAPES[name]
    model = build(config, dtype)
    rows = random_tokens(config, 2, sum(DOCUMENTS))
    ids = torch.cat([torch.full((length,), n) for n, length in enumerate(DOCUMENTS)]).expand(2, -1)
    positions = torch.cat([torch.arange(length) for length in DOCUMENTS]).expand(2, -1)
    packed = model(rows, document_ids=ids, positions=positions)
    alone = torch.cat([model(document) for document in rows.split(DOCUMENTS, dim=1)], dim=1)
    assert (packed - alone).abs().max() < tolerance
    assert (model(rows) - alone).abs().max() > 0.1  # without masks documents do see each other


@pytest.mark.parametrize("name", ["llama2", "llama3.1"])
@torch.no_grad()
def test_packed_documents_equal_transformers_on_each_document(name):
    config = SHAPES[name]
    model = build(config)
    theirs = build_theirs(model, config)
    row = random_tokens(config, 1, sum(DOCUMENTS))
    ids = torch.cat([torch.full((1, length), n) for n, length in enumerate(DOCUMENTS)], dim=1)
    positions = torch.cat([torch.arange(length) for length in DOCUMENTS])[None]
    packed = model(row, document_ids=ids, positions=positions)
    alone = torch.cat([theirs(document).logits for document in row.split(DOCUMENTS, dim=1)], dim=1)
    assert (packed - alone).abs().max() < 1e-5


def test_gradients_of_a_packed_row_are_the_sum_of_its_documents():
    config = SHAPES["llama2"]
    row = random_tokens(config, 1, sum(DOCUMENTS))
    labels = row.roll(-1, 1)
    ids = torch.cat([torch.full((1, length), n) for n, length in enumerate(DOCUMENTS)], dim=1)
    positions = torch.cat([torch.arange(length) for length in DOCUMENTS])[None]
    packed, alone = build(config, torch.float64), build(config, torch.float64)
    packed(row, labels, ids, positions)[0].backward()
    for document, document_labels in zip(row.split(DOCUMENTS, 1), labels.split(DOCUMENTS, 1), strict=True):
        alone(document, document_labels)[0].backward()
    for (name, one), other in zip(packed.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-11, msg=name)


def test_one_micro_batch_of_eight_equals_eight_of_one_in_float64():
    config = SHAPES["llama2"]
    whole, pieces = build(config, torch.float64), build(config, torch.float64)
    tokens = random_tokens(config, 8, 33)
    labels = tokens.roll(-1, 1)
    labels[2, :30] = IGNORE
    labels[5] = IGNORE
    total = int((labels != IGNORE).sum())
    loss, count = whole(tokens, labels)
    (loss / total).backward()
    losses = [pieces(tokens[row : row + 1], labels[row : row + 1]) for row in range(8)]
    for one, _ in losses:
        (one / total).backward()
    assert count == total == sum(int(one_count) for _, one_count in losses)
    torch.testing.assert_close(sum(one for one, _ in losses) / total, loss / total, rtol=0, atol=1e-12)
    for (name, one), other in zip(whole.named_parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-12, msg=name)


def test_loss_is_summed_in_float32_from_bf16_weights():
    config = SHAPES["llama2"]
    model = build(config).to(torch.bfloat16)
    tokens = random_tokens(config, 2, 64)
    loss, count = model(tokens, tokens)
    assert (loss.dtype, count.dtype) == (torch.float32, torch.int64)
    expected = F.cross_entropy(model(tokens).double().flatten(0, 1), tokens.flatten(), reduction="sum")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


def test_norm_of_bf16_divides_in_float32():
    config = SHAPES["llama1"]
    norm = llama.RMSNorm(config).to(torch.bfloat16)
    x = (torch.randn(1, 5, config.hidden_size, generator=torch.Generator().manual_seed(2)) * 300).to(torch.bfloat16)
    expected = F.rms_norm(x.double(), x.shape[-1:], eps=config.norm_epsilon)
    # One rounding of the result: half a unit in the 8th bit.
    torch.testing.assert_close(norm(x).double(), expected, rtol=2**-8, atol=0)


def test_labels_that_do_not_count_give_no_loss_and_no_gradient():
    config = SHAPES["llama1"]
    model = build(config)
    tokens = random_tokens(config, 1, 8)
    loss, count = model(tokens, torch.full_like(tokens, IGNORE))
    loss.backward()
    assert (loss.item(), count.item()) == (0.0, 0)
    assert all((p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("name", ["llama3.1", "tied"])
@torch.no_grad()
def test_model_built_on_meta_computes_the_same(name):
    config = SHAPES[name]
    with torch.device("meta"):
        from_meta = Llama(config)
    from_meta.to_empty(device="cpu")
    assert not list(from_meta.buffers())  # nothing but parameters has to be filled
    initialize(from_meta, config, seed=7)
    plain = Llama(config)
    initialize(plain, config, seed=7)
    tokens = random_tokens(config, 1, 16)
    assert torch.equal(from_meta(tokens), plain(tokens))


@torch.no_grad()
def test_parts_of_a_model_compute_what_the_whole_does():
    config = SHAPES["llama2"]
    whole, first, last = build(config), build(config), build(config)
    first.model.norm = first.lm_head = last.model.embed_tokens = None
    del first.model.layers["1"], first.model.layers["2"], last.model.layers["0"]
    names = {name for part in (first, last) for name, _ in part.named_parameters()}
    assert names == {name for name, _ in whole.named_parameters()}
    tokens = random_tokens(config, 2, 24)
    ids = (torch.arange(24) // 10).expand(2, -1)
    assert torch.equal(last(first(tokens, None, ids), tokens, ids)[0], whole(tokens, tokens, ids)[0])


def test_no_module_has_a_bias():
    assert not [n for n, m in Llama(SHAPES["llama1"]).named_modules() if getattr(m, "bias", None) is not None]
    assert isinstance(Llama(SHAPES["llama1"]).lm_head, nn.Linear)
