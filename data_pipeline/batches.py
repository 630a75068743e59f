"""Documents in and out of the files that phases leave behind."""

from pathlib import Path

import pyarrow as pa

from data_pipeline.document import Documents
from data_pipeline.engines.work import Block, read_block, write_blocks


def load_documents(block: Block) -> Documents:
    """Read a block of documents into memory.

    Raises:
        DataError: it is missing or damaged.
    """
    return Documents(read_block(block).combine_chunks().to_batches()[0])


def write_documents(path: Path, documents: Documents) -> list[Block]:
    """Write documents as one block; none where there are none."""
    return write_blocks(path, [("", pa.Table.from_batches([documents.batch]))]) if len(documents) else []
