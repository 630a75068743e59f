"""The ledger of made-up attempts, by hand, and that of a real run against its own wall clock."""

from pathlib import Path

import pytest

from llama_train.observe.ledger import PARTS, ledger_of
from llama_train.observe.metrics import Beginning, Ending
from tests.llama_train.observe.made_up_steps import step_record


def step(number: int, attempt: int, ended_at: float, seconds: float = 2.0, **values: object):
    parts = {"compute_seconds": 1.5, "data_seconds": 0.25, "checkpoint_seconds": 0.0, "seconds": seconds}
    return step_record(number, attempt=attempt, ended_at=ended_at, **{**parts, **values})


def test_a_killed_run_that_goes_on_is_added_up_by_hand() -> None:
    records = [
        Beginning(0, 1, 1000.0, {"groups": 3.0, "loading": 1.0}),
        step(1, 1, 1006.0),
        step(2, 1, 1009.0, seconds=3.0, checkpoint_seconds=1.0),
        step(3, 1, 1011.0),  # lost: the checkpoint was that of step 2
        Beginning(2, 2, 1020.0, {"groups": 5.0}),
        step(3, 2, 1027.0),
        Ending(3, 2, 1030.0, 3.0, 1.0, failed=True),
        Beginning(3, 3, 1031.5, {"groups": 2.5}),
        step(4, 3, 1036.0, skipped=True),
        Ending(4, 3, 1036.5, 0.5, 0.5, failed=False),
        Beginning(4, 4, 1100.0, {"groups": 1.0}),
    ]
    found = ledger_of(records)
    assert found.seconds == pytest.approx(
        {
            "compute": 4.5,
            "data": 1.0,
            "checkpoint": 1.0 + 1.0 + 0.5,
            "other": 4 * 0.25,
            "start": 4.0,
            "restart": 5.0 + 2.5 + 1.0 + 1.5,
            "recomputed": 2.0,
            "stalled": 9.0 + 2.0 + 1.5,  # until the next process; the failed one's end; an update that was not made
            "stopped": 63.5,
        }
    )
    assert list(found.seconds) == list(PARTS)
    assert sum(found.seconds.values()) == pytest.approx(1101.0 - 1000.0)  # nothing is missing, nothing counted twice
    assert found.goodput == pytest.approx(4.5 / (101.0 - 63.5))
    assert found.attempts == 4
    assert found.describe().startswith("goodput 12.0% over 4 attempts, 101 s: compute 4.5%")
    assert found.describe().endswith("; a start takes 3.8 s: groups 2.8, loading 1.0")  # medians


def test_clocks_that_disagree_give_no_negative_time() -> None:
    records = [Beginning(0, 1, 1000.0, {}), step(1, 1, 5000.0), Beginning(1, 2, 900.0, {}), step(2, 2, 902.0)]
    assert min(ledger_of(records).seconds.values()) >= 0


def test_an_empty_run_has_no_goodput(tmp_path: Path) -> None:
    assert ledger_of([]).goodput == 0.0
