"""What a proof prints."""

import dataclasses
import math

from llama_train.prove.harness import FLOAT64, Differences
from llama_train.prove.proof import Outcome
from llama_train.prove.table import HEADING, as_json, markdown, row

EXACT = Differences(0.0, 0.0, 0.0, 0.0, "model.layers.3.post_attention_layernorm.weight")
GOOD = Outcome("pp2 zero_bubble_v, 8 micro-batches", "native", 4, "cpu", EXACT, FLOAT64, 123.4)
ABOUT = {
    "matrix": "full",
    "engine": "native",
    "precision": "fp64",
    "tolerance": "nothing",
    "date": "2026-11-22",
    "torch": "2.13.0",
    "python": "3.11.9",
    "device": "cpu",
    "model": "3m",
    "shrunk": "4 layers of width 96",
    "seconds": 130.0,
}


def test_a_nan_or_a_value_above_the_tolerance_never_passes() -> None:
    assert GOOD.passed
    for field in ("loss", "gradient", "norm", "weight"):
        for value in (math.nan, 1.0, 2 * getattr(FLOAT64, field)):
            assert not dataclasses.replace(GOOD, differences=dataclasses.replace(EXACT, **{field: value})).passed


def test_a_row_fits_100_columns() -> None:
    broken = dataclasses.replace(GOOD, differences=dataclasses.replace(EXACT, loss=1.234e-10, gradient=math.nan))
    for line in (HEADING, row(GOOD), row(broken)):
        assert len(line) <= 100, line
    assert row(GOOD).split()[-1] == "pass"
    assert row(broken).split()[-1] == "FAIL"
    assert "3.post_attention_norm" in row(GOOD)


def test_a_case_that_did_not_end_fails_in_every_form() -> None:
    dead = dataclasses.replace(GOOD, differences=None, error="rank 3 ended with status 1")
    assert row(dead).split()[-1] == "FAIL"
    assert as_json(dead)["error"] == "rank 3 ended with status 1"
    assert as_json(dead)["passed"] is False
    assert "**FAIL**" in markdown([GOOD, dead], ABOUT, [])


def test_the_markdown_table_has_date_versions_and_what_was_not_run() -> None:
    text = markdown([GOOD], ABOUT, ["float8: not proven"])
    for expected in ("2026-11-22", "torch 2.13.0", "1 of 1 passed, in 2 minutes", "- float8: not proven"):
        assert expected in text
    assert text.splitlines()[-1].startswith("| pp2 zero_bubble_v, 8 micro-batches | native | 4 | 0 | 0 | 3.post")


def test_engines_that_alternate_are_mixed_in_a_row_and_spelled_out_elsewhere() -> None:
    engines = "native → ZeRO-3 → native"
    found = dataclasses.replace(GOOD, engine=engines, clipped_steps=20)
    assert len(row(found)) <= 100 and " mixed " in row(found)
    about = ABOUT | {"engine": "deepspeed", "deepspeed": "0.19.8"}
    assert f"| {engines} |" in markdown([found], about, []) and "deepspeed 0.19.8" in markdown([found], about, [])
    assert as_json(found)["engine"] == engines and as_json(found)["clipped_steps"] == 20
