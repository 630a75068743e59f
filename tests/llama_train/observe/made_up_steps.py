"""A made-up step for the tests in this folder."""

from typing import Any

from llama_train.observe.metrics import StepRecord


def step_record(step: int, attempt: int = 1, **values: Any) -> StepRecord:
    usual = {
        "tokens": step * 1000,
        "batch_tokens": 1000,
        "loss": 9.0 - step / 100,
        "lr": 3e-4,
        "grad_norm": 0.8125,
        "seconds": 0.5,
        "tokens_per_second": 2000.0,
        "tokens_per_second_per_device": 1000.0,
        "data_seconds": 0.05,
        "compute_seconds": 0.4,
        "checkpoint_seconds": 0.0,
        "memory_bytes": 2**30,
    }
    return StepRecord(step=step, attempt=attempt, **{**usual, **values})
