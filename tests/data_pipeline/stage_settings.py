"""Settings with which a stage runs: some have to be told a file."""

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.config import PipelineConfig
from data_pipeline.filters import perplexity
from data_pipeline.filters.linear import QUANTILES, Features, LinearModel, save_model
from data_pipeline.filters.perplexity import Bucket, LanguageModel


class LetterModel:
    """In place of a model of kenlm, which has no wheel: a word of L letters has probability 10**-L."""

    def __init__(self, path: str) -> None:
        pass

    def score(self, sentence: str) -> float:
        return -float(sum(map(len, sentence.split(" "))) + 1)


@contextmanager
def letter_models() -> Iterator[None]:
    """Let `perplexity` load a LetterModel for every file."""
    perplexity._load.cache_clear()
    before = sys.modules.get("kenlm")
    sys.modules["kenlm"] = types.SimpleNamespace(Model=LetterModel)
    try:
        yield
    finally:  # this name alone: what the stages import meanwhile stays
        sys.modules.pop("kenlm")
        if before is not None:
            sys.modules["kenlm"] = before
        perplexity._load.cache_clear()


def settings_of(name: str, folder: Path) -> Any:
    """Return the default settings of a stage, with the files that it needs written into `folder`."""
    settings = getattr(PipelineConfig(name="test", stages=[name]), name)
    folder.mkdir(parents=True, exist_ok=True)
    if name == "url_list":
        (folder / "domains").write_text("b.example\n")
        (folder / "urls").write_text("c.example/x\n")
        settings.folders = [str(folder)]
    if name == "quality":
        weights = np.random.default_rng(1).normal(size=2**10).astype(np.float32)
        model = LinearModel(Features(bits=10), weights, 0.1, np.linspace(0.1, 0.9, QUANTILES))
        (folder / "quality.safetensors").write_bytes(save_model(model, {}))
        settings.model, settings.threshold = str(folder / "quality.safetensors"), 0.5
    if name == "perplexity":
        (folder / "en.bin").write_bytes(b"")
        settings.models = {"en": LanguageModel(str(folder / "en.bin"), head=1e3, middle=10**4.2)}
        settings.keep_through = Bucket.middle
    if hasattr(settings, "check"):
        settings.check()
    return settings
