"""Documents for tests, from the few fields that a test is about."""

import pyarrow as pa

from data_pipeline.document import SCHEMA, Documents, record_id


def make_documents(rows: list[dict]) -> Documents:
    """Return one document per row; what a row leaves out is null, or the plainest value."""
    plain = {"source": "web", "file": "f", "published": False, "copies": 1, "text": "text"}
    filled = [
        {"record_id": record_id("s", "f", number, None, None), "row": number, **plain, **row}
        for number, row in enumerate(rows)
    ]
    columns = [pa.array([row.get(field.name) for row in filled], field.type) for field in SCHEMA]
    return Documents(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
