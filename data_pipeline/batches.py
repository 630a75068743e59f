"""Documents in and out of the files that phases leave behind."""

from pathlib import Path

import pyarrow as pa

from data_pipeline.document import SCHEMA, Documents
from data_pipeline.engines.work import Block, read_block, write_blocks
from llama_foundation.errors import DataError


def load_documents(block: Block) -> Documents:
    """Read a block of documents into memory.

    Raises:
        DataError: it is missing or damaged.
    """
    table = read_block(block).combine_chunks()
    if not table.num_rows or not set(SCHEMA.names) <= set(table.schema.names):
        raise DataError(f"{block.path} holds no documents; delete it and run the same command again")
    return Documents(table.to_batches()[0])


def write_documents(path: Path, documents: Documents) -> list[Block]:
    """Write documents as one block; none where there are none."""
    return write_blocks(path, [("", pa.Table.from_batches([documents.batch]))]) if len(documents) else []
