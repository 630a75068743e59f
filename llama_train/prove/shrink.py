"""A user's configuration made small enough to prove on a laptop: same switches, same ratios, fewer of everything."""

import copy
import math

from llama_train.config import Float8, Precision, TrainConfig

STEPS = 20
SEQUENCE_LENGTH = 32
HEAD_DIM = 8
VOCABULARY = 101  # divides over nothing


def shrink(config: TrainConfig, batch_size: int) -> TrainConfig:
    """Return a copy of `config` in float64 with at most 3 layers, 4 heads and 20 steps.

    Kept: the ratio of heads to KV heads (a multiple of it where 4 heads cannot show it) and of FFN to width, tied
    embeddings, RoPE and its scaling, packing, document masks, the engine's switches but float8, resharding, optimizer
    and schedule. Segments of the data are not kept: every layout reads the same order.
    """
    small = copy.deepcopy(config)
    model = small.model
    group = config.model.heads // config.model.kv_heads
    model.heads = min(config.model.heads, 4 if group == 1 else 2 * min(group, 4))
    model.kv_heads = max(1, model.heads // min(group, 4))
    model.hidden_size = model.heads * HEAD_DIM
    model.ffn_size = max(8, math.ceil(model.hidden_size * config.model.ffn_size / config.model.hidden_size))
    model.layers = min(config.model.layers, 3)
    model.vocab_size = VOCABULARY
    model.context = SEQUENCE_LENGTH
    model.initial_std = 0.1  # with 0.02 so small a model's logits, and so its gradients, would be almost zero
    small.data.sequence_length = SEQUENCE_LENGTH
    small.data.batch_size = batch_size
    small.data.segments = []
    small.data.sources = {}
    small.steps = STEPS
    small.stop_at_step = None
    small.schedule.total_steps = STEPS
    small.schedule.warmup_steps = min(config.schedule.warmup_steps, 4)
    if small.schedule.decay_steps is not None:
        small.schedule.decay_steps = 8
    small.engine.precision = Precision.fp64
    small.engine.float8 = Float8.none  # no float64 has it
    if small.engine.loss_chunk:
        # So many tokens that a micro-batch of one row has several pieces, the last one shorter.
        small.engine.loss_chunk = SEQUENCE_LENGTH // 3
    small.cluster.device = "cpu"
    small.check()
    return small
