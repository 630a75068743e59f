"""Text to token ids: load a tokenizer, or train one."""

from pathlib import Path

from data_pipeline.tokenize.huggingface import HuggingFaceTokenizer
from data_pipeline.tokenize.sentencepiece import SentencePieceTokenizer
from data_pipeline.tokenize.tiktoken import FIRST_LINE, TiktokenTokenizer
from data_pipeline.tokenize.tokenizer import Tokenizer, read_tokenizer_file
from data_pipeline.tokenize.train import train_sentencepiece
from data_pipeline.tokenize.train_byte_level import train_byte_level
from llama_foundation.errors import DataError

__all__ = ["Tokenizer", "load_tokenizer", "train_byte_level", "train_sentencepiece"]

_FILE_NAMES = ("tokenizer.model", "tokenizer.json")


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load a tokenizer file, or a directory's `tokenizer.model` or else `tokenizer.json`.

    What a file is, a sentencepiece model, a `tokenizer.json` or ranks in tiktoken's format, is told by its contents.

    Raises:
        DataError: there is no such file, it is damaged, or it has no bos or eos.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in _FILE_NAMES if (path / name).is_file()]
        if not found:
            raise DataError(f"{path}: there is no {' and no '.join(_FILE_NAMES)} in this directory")
        path = found[0]
    content = read_tokenizer_file(path)
    if content.lstrip()[:1] == b"{":
        return HuggingFaceTokenizer(path, content)
    if FIRST_LINE.match(content):
        return TiktokenTokenizer(path, content)
    return SentencePieceTokenizer(path, content)
