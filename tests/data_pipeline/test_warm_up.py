"""Kernels are compiled once, and a preset that cannot run does not stop there."""

import io

from rich.console import Console

from data_pipeline import warm_up
from data_pipeline.config import PipelineConfig


def said_by(stages, **settings):
    console = Console(file=io.StringIO())
    pipeline = PipelineConfig(name="made", stages=stages)
    for name, value in settings.items():
        setattr(getattr(pipeline, name), *value)
    warm_up.warm_up(pipeline, console)
    return console.file.getvalue()


def test_a_stage_is_warmed_up_once(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    assert "compiling kernels (once)" in said_by(["fineweb", "exact_dedup"])
    assert said_by(["fineweb"]) == said_by(["exact_dedup"]) == ""
    assert "compiling" in said_by(["fineweb", "gopher_quality"])


def test_other_sources_are_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    said_by(["fineweb"])
    monkeypatch.setattr(warm_up, "_sources", lambda: "others")
    assert "compiling" in said_by(["fineweb"])


def test_kernels_of_other_sources_are_forgotten_once(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    stale, strange = (tmp_path / "text_1" / name for name in ("ngrams.count-7.py311.nbi", "theirs.count-7.py311.nbi"))
    strange.parent.mkdir()
    stale.touch()
    strange.touch()
    said_by(["exact_dedup"])
    assert not stale.exists() and strange.exists()
    stale.touch()
    said_by(["url_dedup"])
    assert stale.exists()


def test_settings_that_a_stage_refuses_are_left_to_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    lists = ("flagged_word_lists", {"en": str(tmp_path / "missing.txt")})
    assert "compiling" in said_by(["c4"], c4=lists)
    assert "compiling" in said_by(["c4"], c4=lists)
