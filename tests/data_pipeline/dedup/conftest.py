"""Running a global stage over documents that are cut into blocks at will."""

import io
import itertools

import pyarrow as pa
from rich.console import Console

from data_pipeline.batches import load_documents, write_documents
from data_pipeline.chain import Chain
from data_pipeline.document import Documents
from data_pipeline.engines.local import LocalEngine
from data_pipeline.report.statistics import StageStatistics


def run_stage(folder, run, settings, documents, cuts=(), workers=1):
    """Return what stays, in the order of record ids, and the statistics without the time.

    Args:
        run: of a global stage.
        cuts: rows before which a new block begins.
    """
    folder.mkdir(parents=True, exist_ok=True)
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(documents)}), len(documents)]
    blocks = []
    for number, (start, end) in enumerate(itertools.pairwise(edges)):
        blocks += write_documents(folder / f"{number}.arrow", Documents(documents.batch.slice(start, end - start)))
    with LocalEngine(workers) as engine:
        chain = Chain(folder / "work", engine, Console(file=io.StringIO()), seed=0)
        kept, statistics = run(chain, blocks, settings)
    for each in statistics:
        each.cpu_milliseconds = 0
    assert all(isinstance(each, StageStatistics) for each in statistics)
    batches = [load_documents(block).batch for block in kept]
    table = pa.Table.from_batches(batches, documents.batch.schema) if batches else documents.batch.slice(0, 0)
    return sorted(table.to_pylist(), key=lambda row: row["record_id"]), statistics


def shuffled(documents, generator):
    """Return the same documents in another order."""
    order = list(range(len(documents)))
    generator.shuffle(order)
    return Documents(documents.batch.take(pa.array(order)))
