"""Reads an input the way the pipeline does: cut, survey, settle, read every piece."""

import pyarrow as pa

from data_pipeline.config import InputConfig
from data_pipeline.document import SCHEMA
from data_pipeline.read import plan
from data_pipeline.read.rows import NAME, Rows
from data_pipeline.report.statistics import StageStatistics


def pieces_of(config, partition_bytes):
    pieces = plan.cut(plan.find(config), partition_bytes, config)
    unknown = [piece for piece in pieces if plan.needs_survey(piece, partition_bytes)]
    return plan.settle(pieces, {piece: plan.survey(piece, partition_bytes, config) for piece in unknown})


def read_whole(paths, partition_bytes=10**9, **settings):
    """Return (table of all documents, merged statistics)."""
    paths = [str(paths)] if not isinstance(paths, list) else paths
    config = InputConfig(paths=paths, **settings)
    tables, statistics = [SCHEMA.empty_table()], StageStatistics(NAME)
    for piece in pieces_of(config, partition_bytes):
        rows = Rows(piece.file, config, seed=0)
        for _ in plan.read(piece, config, rows):
            pass
        if (table := rows.take()) is not None:
            tables.append(table)
        statistics.merge(rows.statistics)
    return pa.concat_tables(tables), statistics


def problems_of(statistics):
    """Return {reason: [row, ...]} of what was dropped."""
    return {
        reason.removeprefix("read."): sorted(each["row"] for each in examples)
        for reason, examples in statistics.examples.items()
    }
