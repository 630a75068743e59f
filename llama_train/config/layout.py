"""Which process computes which slice."""

from dataclasses import dataclass
from enum import Enum

from llama_train.config.checks import at_least


class PipelineSchedule(Enum):
    """In which order a pipeline stage computes forward and backward passes; m micro-batches, p ranks."""

    gpipe = "gpipe"  # all forward, then all backward (Huang et al. 2019): m micro-batches of activations
    one_f_one_b = "one_f_one_b"  # one forward, one backward (Narayanan et al. 2019): at most p of them
    interleaved = "interleaved"  # 1F1B over several stages a rank (Narayanan et al. 2021): a smaller bubble
    interleaved_zero_bubble = "interleaved_zero_bubble"  # and weight gradients fill the bubble (Qi et al. 2023)
    zero_bubble_v = "zero_bubble_v"  # two stages a rank in a V: the first rank holds both ends (Qi et al. 2024)
    dual_pipe_v = "dual_pipe_v"  # the same V, a forward and a backward pass overlapped (DeepSeek-AI 2024; Qi 2025)


class ContextMethod(Enum):
    """How attention sees the tokens of other context ranks."""

    all_gather = "all_gather"  # gathers K and V; sequences are cut head to tail (Llama Team 2024, section 3.3.2)
    ulysses = "ulysses"  # exchanges heads for tokens (Jacobs et al. 2023); needs as many KV heads as ranks
    ring = "ring"  # K and V travel from rank to rank (Liu et al. 2023); no document masks


@dataclass
class LayoutConfig:
    """Who computes which slice: the five axes of the device mesh. It never changes what is computed."""

    pipeline: int = 1
    data_replicate: int = 1
    data_shard: int = -1  # -1: all processes that are left
    context: int = 1
    tensor: int = 1
    micro_batch_size: int = 1  # sequences per forward pass on one data-parallel rank
    pipeline_schedule: PipelineSchedule = PipelineSchedule.one_f_one_b
    stages_per_rank: int = 1  # pipeline stages on every rank; 2 or more for the interleaved schedules, 2 for a V
    layers_per_stage: list[int] | None = None  # from the first stage to the last; null: balanced, the head weighed in
    context_method: ContextMethod = ContextMethod.all_gather
    replicate_kv_heads: bool = False  # allow more tensor ranks than KV heads: every rank keeps all of K and V's weights

    def check(self) -> None:
        for name in ("pipeline", "data_replicate", "context", "tensor", "micro_batch_size", "stages_per_rank"):
            at_least(f"layout.{name}", getattr(self, name), 1)
        if self.data_shard != -1:
            at_least("layout.data_shard", self.data_shard, 1)
        for count in self.layers_per_stage or []:
            at_least("layout.layers_per_stage", count, 1)
