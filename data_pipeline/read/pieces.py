"""An input file as it was found, and a part of it that one worker reads."""

from dataclasses import dataclass


@dataclass(frozen=True)
class InputFile:
    """A file as it was found; size and time tell whether it is still the same."""

    path: str  # local, or a URL that fsspec knows; `hub:...` for a shard of a data set by name
    source: str  # of records that name none
    size: int  # bytes
    modified: int  # nanoseconds since 1970; 0 where the store does not say
    published: bool = False  # its documents are in shards that are already published


@dataclass(frozen=True)
class Piece:
    """Bytes [start, end) of a JSONL or WARC file, row group `start` of a Parquet file, or a whole file."""

    file: InputFile
    start: int
    end: int
    first_row: int

    @property
    def label(self) -> str:
        return f"{self.file.path} from row {self.first_row}" + (f", byte {self.start}" if self.start else "")
