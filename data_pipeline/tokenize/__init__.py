"""Text to token ids: load a tokenizer, or train one."""

from pathlib import Path

from data_pipeline.tokenize.sentencepiece import SentencePieceTokenizer
from data_pipeline.tokenize.tokenizer import Tokenizer
from data_pipeline.tokenize.train import train_sentencepiece
from llama_foundation.errors import DataError

__all__ = ["Tokenizer", "load_tokenizer", "train_sentencepiece"]


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load a tokenizer file, or the `tokenizer.model` of a directory.

    Raises:
        DataError: there is no such file, or it is not a whole sentencepiece model with bos and eos.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "tokenizer.model").is_file():
            raise DataError(f"{path}: there is no tokenizer.model in this directory")
        path = path / "tokenizer.model"
    return SentencePieceTokenizer(path)
