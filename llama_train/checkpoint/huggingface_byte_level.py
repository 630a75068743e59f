"""Llama 3's kind of tokenizer, a file of tiktoken ranks, as the tokenizer.json that transformers loads."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, processors
from tokenizers.models import BPE

from data_pipeline.tokenize.tiktoken import FIRST_LINE, SPECIAL_TOKENS, TiktokenTokenizer, read_ranks
from data_pipeline.tokenize.tokenizer import read_tokenizer_file
from data_pipeline.tokenize.train_byte_level import byte_characters, byte_level_pieces


def has_ranks(model_file: Path) -> bool:
    """Return whether a file holds tiktoken ranks.

    Raises:
        DataError: it cannot be read.
    """
    return FIRST_LINE.match(read_tokenizer_file(model_file)) is not None


def load_ranks(model_file: Path) -> TiktokenTokenizer:
    """Load a file of ranks.

    Raises:
        DataError: it is damaged.
    """
    return TiktokenTokenizer(model_file, read_tokenizer_file(model_file))


def build_byte_level(model_file: Path) -> Tokenizer:
    """Build the fast tokenizer of a file of ranks; with special tokens it puts bos in front, as Llama 3's does.

    Raises:
        DataError: the file is damaged.
    """
    ranks = read_ranks(read_tokenizer_file(model_file), model_file)
    character = {byte: character for character, byte in byte_characters().items()}
    spelled = {token: "".join(character[byte] for byte in token) for token in ranks}
    tokenizer = Tokenizer(
        BPE(
            vocab={spelled[token]: rank for token, rank in ranks.items()},
            merges=[(spelled[left], spelled[right]) for left, right in _merges(ranks)],
            ignore_merges=True,  # tiktoken looks a whole piece up before it merges
        )
    )
    tokenizer.pre_tokenizer = byte_level_pieces()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL_TOKENS])
    bos = SPECIAL_TOKENS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, len(ranks))]
    )
    return tokenizer


def byte_level_settings(context: int) -> dict[str, Any]:
    """Return the contents of tokenizer_config.json for what `build_byte_level` made; `context` is in tokens."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every way to put a token together from two, the lowest rank first, as tiktoken merges."""
    merges = [
        (rank, ranks[token[:cut]], ranks[token[cut:]], cut, token)
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    return [(token[:cut], token[cut:]) for *_, cut, token in sorted(merges)]
