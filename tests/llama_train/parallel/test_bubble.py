"""The bubble of a schedule played through, against the formulas of the papers."""

import time

import pytest
import torch

from llama_train.config import LayoutConfig, PipelineSchedule
from llama_train.parallel.bubble import ideal_bubble
from llama_train.parallel.layout import Layout
from llama_train.parallel.stopwatch import Stopwatch


def bubble(schedule: PipelineSchedule, ranks: int, micro_batches: int, stages: int = 1) -> float:
    config = LayoutConfig(pipeline_schedule=schedule, stages_per_rank=stages)
    return ideal_bubble(Layout(1, 1, 0, 1, pipeline=ranks, config=config), micro_batches)


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 2), (4, 8), (8, 32), (16, 16)])
def test_gpipe_and_1f1b_wait_for_all_ranks_but_one(ranks: int, micro_batches: int) -> None:
    # Huang et al. 2019, section 2.3; Narayanan et al. 2021, section 2.2.1: (p − 1) of (m + p − 1).
    expected = (ranks - 1) / (micro_batches + ranks - 1)
    assert bubble(PipelineSchedule.gpipe, ranks, micro_batches) == pytest.approx(expected)
    assert bubble(PipelineSchedule.one_f_one_b, ranks, micro_batches) == pytest.approx(expected)


@pytest.mark.parametrize(("ranks", "micro_batches", "stages"), [(2, 4, 2), (4, 8, 2), (4, 16, 4)])
def test_interleaving_divides_the_bubble_by_the_stages(ranks: int, micro_batches: int, stages: int) -> None:
    # Narayanan et al. 2021, section 2.2.2: the wait is (p − 1) / v of one micro-batch's time, the work m of them.
    expected = (ranks - 1) / (stages * micro_batches + ranks - 1)
    assert bubble(PipelineSchedule.interleaved, ranks, micro_batches, stages) == pytest.approx(expected, rel=0.02)


def test_splitting_the_backward_pass_leaves_less_than_1f1b() -> None:
    plain = bubble(PipelineSchedule.one_f_one_b, 4, 16)
    for schedule in (
        PipelineSchedule.interleaved_zero_bubble,
        PipelineSchedule.zero_bubble_v,
        PipelineSchedule.dual_pipe_v,
    ):
        assert 0 < bubble(schedule, 4, 16, stages=2) < plain / 2


def test_a_stopwatch_adds_up_what_it_saw_and_nothing_else() -> None:
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        time.sleep(0.02)
        with watch.running():
            time.sleep(0.05)
    assert 0.1 <= watch.seconds() < 0.14 + 1.0  # a busy machine sleeps longer
    before = watch.seconds()
    time.sleep(0.02)
    assert watch.seconds() == before
