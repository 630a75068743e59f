"""One finished step in numbers."""

import time

import torch

from llama_train.config import TrainConfig
from llama_train.distributed import World
from llama_train.engine.engine import StepResult
from llama_train.model.size import causal_attention
from llama_train.observe.metrics import StepRecord
from llama_train.observe.speed import memory_bytes, peak_tflops, utilization

MFU_FORMULA = "causal_attention"


class Recorder:
    """Turns what a step did and where its time went into a `StepRecord`."""

    def __init__(self, config: TrainConfig, world: World, attempt: int) -> None:
        self._config = config
        self._world = world
        self._attempt = attempt
        name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
        self._peak = peak_tflops(name, config.cluster.peak_tflops)
        self._last = time.perf_counter()

    def record(
        self,
        step: int,
        tokens: int,
        sequence_length: int,
        result: StepResult,
        learning_rate: float,
        phases: dict[str, float],
    ) -> StepRecord:
        """Return the record of a step that has just ended.

        Args:
            step: finished steps, this one included.
            tokens: seen so far, this step's included.
            sequence_length: of this step, in tokens; attention's share of the FLOPs depends on it.
            phases: seconds per phase since the last record (`clock.StepClock.take`).
        """
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        speed = result.tokens / seconds
        per_device = speed / self._world.size
        mfu = utilization(per_device, causal_attention(self._config.model, sequence_length), self._peak)
        return StepRecord(
            step=step,
            attempt=self._attempt,
            tokens=tokens,
            batch_tokens=result.tokens,
            loss=result.loss,
            lr=learning_rate,
            grad_norm=result.grad_norm,
            seconds=seconds,
            tokens_per_second=speed,
            tokens_per_second_per_device=per_device,
            data_seconds=phases.get("data", 0.0),
            compute_seconds=phases.get("compute", 0.0),
            checkpoint_seconds=phases.get("checkpoint", 0.0),
            memory_bytes=memory_bytes(self._world.device),
            mfu=mfu,
            mfu_formula=None if mfu is None else MFU_FORMULA,
            pipeline_bubble=result.pipeline_bubble,
            ended_at=time.time(),
            skipped=None if result.applied else True,
        )
