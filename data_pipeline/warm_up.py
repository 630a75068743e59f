"""Compiles the kernels of stages once, before workers would each do it for themselves.

    python -m data_pipeline.warm_up

numba keeps what it compiled beside the sources (or in NUMBA_CACHE_DIR) and loads it from there as long as the file of a
kernel is the same. It does not look at other files whose kernels are compiled into that one, so all is forgotten when
any source has changed. A stage is warmed up by taking a few documents through it; a mark next to the kernels says that
this was done.
"""

import io
import os
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numba
import pyarrow as pa
import xxhash
from rich.console import Console
from rich.progress import track

from data_pipeline.batches import write_documents
from data_pipeline.chain import Chain
from data_pipeline.config import PipelineConfig
from data_pipeline.document import SCHEMA, Documents, record_id
from data_pipeline.engines.local import LocalEngine
from data_pipeline.report.statistics import StageStatistics
from data_pipeline.stages import STAGES, GlobalStage, apply_local
from llama_foundation.errors import UserError

_ROOT = Path(__file__).parent
_WORDS = "The river that runs behind the old mill had not been so high since the year of the great flood [1]."
_LINES = (
    _WORDS,
    _WORDS,
    "• Please enable javascript…",
    "",
    *(f"Line {n} of the page, and that is all." for n in range(6)),
)
_TEXTS = (
    *("\n".join(_LINES).replace("mill", name) for name in ("mill", "mill", "barn", "church")),
    *("\n".join(_LINES) for _ in range(8)),
    "\n".join(reversed(_LINES)),
    "河水很高。這是一個沒有空格的句子。\nLa rivière était très haute.",
)


def warm_up(pipeline: PipelineConfig, console: Console) -> None:
    """Compile what the stages of a preset need and no run before has compiled."""
    cold = [name for name in pipeline.stages if not _mark(name).exists()]
    if not cold:
        return
    console.print("compiling kernels (once)", highlight=False)
    if not any(_kept_in().glob(f"kernels-*-{_sources()}")):
        _forget()
    for name in track(cold, "compile", console=console, transient=True):
        try:
            _take_documents_through(name, getattr(pipeline, name))
            _mark(name).parent.mkdir(parents=True, exist_ok=True)
            _mark(name).touch()
        except (UserError, OSError):
            pass  # the run will say what is wrong with the settings; kernels that cannot be kept are compiled in it


def _take_documents_through(name: str, settings: Any) -> None:
    stage, documents = STAGES[name], _documents()
    if not isinstance(stage, GlobalStage):
        apply_local(stage, documents, settings, StageStatistics(name), 0)
        return
    with tempfile.TemporaryDirectory() as folder, LocalEngine(1) as engine:
        blocks = write_documents(Path(folder) / "documents.arrow", documents)
        stage.run(Chain(Path(folder), engine, Console(file=io.StringIO()), 0), blocks, settings)


def _documents() -> Documents:
    rows = range(len(_TEXTS))
    columns = {
        "record_id": [record_id("", "", row, None, None) for row in rows],
        "source": [""] * len(_TEXTS),
        "file": [""] * len(_TEXTS),
        "row": list(rows),
        "url": [f"https://example.org/{row // 2}" for row in rows],
        "language": ["en"] * len(_TEXTS),
        "published": [False] * len(_TEXTS),
        "copies": [1] * len(_TEXTS),
        "text": list(_TEXTS),
    }
    nothing = [None] * len(_TEXTS)
    return Documents(pa.record_batch([pa.array(columns.get(f.name, nothing), f.type) for f in SCHEMA], schema=SCHEMA))


def _mark(stage: str) -> Path:
    """Return the file that says that the kernels of a stage are compiled from the sources as they are now."""
    return _kept_in() / f"kernels-{stage}-{_sources()}"


def _kept_in() -> Path:
    return Path(os.environ.get("NUMBA_CACHE_DIR") or _ROOT / "__pycache__")


def _forget() -> None:
    """Delete numba's index of every kernel of this package, and the marks of other sources."""
    ours = {path.stem for path in _ROOT.rglob("*.py")}
    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or _ROOT)
    stale = [path for path in folder.rglob("*.nbi") if path.name.split(".")[0] in ours]
    for path in [*stale, *_kept_in().glob("kernels-*")]:
        path.unlink(missing_ok=True)


@cache
def _sources() -> str:
    """Return a key of the sources as numba tells them apart: by time and size."""
    state = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(_ROOT.rglob("*.py"))]
    return xxhash.xxh3_64_hexdigest(repr((numba.__version__, sys.version, state)).encode())


def main() -> int:
    """Compile the kernels of every stage that needs nothing from the user."""
    warm_up(PipelineConfig(name="all", stages=list(STAGES)), Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
