"""A sentencepiece model as the tokenizer.json that transformers loads, giving the same ids."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

from llama_foundation.errors import DataError

_SPACE = "\u2581"
_BPE = 2  # TrainerSpec.ModelType.BPE
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # SentencePiece.Type
_PROBES = (
    "Hello world",
    " leading, trailing  and   repeated spaces ",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "3.14159 and 2,718,281 in 1234567890",
    "def f(x):\n\treturn x ** 2  # done\r\n",
    "日本語とемодзи 🦙 e\u0301 \u200b\u00a0",
)


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens around a document; None where the model has none."""

    bos: int | None
    eos: int | None


END_OF_TEXT = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
"""What ends a text, a message and a turn in Llama 3's vocabularies."""

_RANKS_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
# Llama 3's 256 special tokens follow its ranks; in llama-models, models/llama3/tokenizer.py, these are the places
_RANKS_SPECIAL = {"<|begin_of_text|>": 0, "<|end_of_text|>": 1, "<|eom_id|>": 8, "<|eot_id|>": 9}


def end_of_text_ids(files: dict[str, Path]) -> list[int]:
    """Return every id after which a text is over, ascending: Llama 3 has several.

    They are looked up by name in `tokenizer.json`, or in a `tokenizer.model` that holds tiktoken ranks; a tokenizer
    that has none of the names has its eos.

    Raises:
        DataError: a file is damaged.
    """
    found: set[int | None] = {special_tokens(files).eos}
    if "tokenizer.json" in files:
        tokenizer = _tokenizer_json(files["tokenizer.json"])
        found |= {tokenizer.token_to_id(name) for name in END_OF_TEXT}
    elif (ranks := _ranks(files)) is not None:
        found |= {ranks + _RANKS_SPECIAL[name] for name in END_OF_TEXT}
    return sorted(token for token in found if token is not None)


def special_tokens(files: dict[str, Path]) -> SpecialTokens:
    """Return the ids of bos and eos, from `tokenizer.model` or else from `tokenizer.json` and its configuration.

    Raises:
        DataError: a file is damaged.
    """
    ranks = _ranks(files)
    if ranks is not None:
        return SpecialTokens(ranks + _RANKS_SPECIAL["<|begin_of_text|>"], ranks + _RANKS_SPECIAL["<|end_of_text|>"])
    if "tokenizer.model" in files:
        processor = _processor(files["tokenizer.model"])
        bos, eos = processor.bos_id(), processor.eos_id()
        return SpecialTokens(None if bos < 0 else bos, None if eos < 0 else eos)
    if not {"tokenizer.json", "tokenizer_config.json"} <= files.keys():
        return SpecialTokens(None, None)
    tokenizer = _tokenizer_json(files["tokenizer.json"])
    try:
        settings = json.loads(files["tokenizer_config.json"].read_bytes())
        named = [settings.get(field) for field in ("bos_token", "eos_token")]
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{files['tokenizer_config.json']}: cannot be read: {error}") from error
    texts = [token.get("content") if isinstance(token, dict) else token for token in named]
    return SpecialTokens(*(tokenizer.token_to_id(text) if isinstance(text, str) else None for text in texts))


def build_tokenizer(model_file: Path) -> Tokenizer:
    """Build the fast tokenizer of a sentencepiece BPE model; with special tokens it puts bos in front, as Llama's do.

    Raises:
        DataError: it is no BPE model, or its ids on a few texts are not those of the model.
    """
    model = _parse(model_file)
    if model.trainer_spec.model_type != _BPE:
        raise DataError(f"{model_file}: not a BPE model; only those have an equal tokenizer.json")
    pieces = [piece.piece for piece in model.pieces]
    tokenizer = Tokenizer(
        BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=_merges(model),
            unk_token=next((piece.piece for piece in model.pieces if piece.type == _UNKNOWN), None),
            fuse_unk=True,
            byte_fallback=model.trainer_spec.byte_fallback,
        )
    )
    tokenizer.normalizer = _normalizer(model.normalizer_spec)
    prefix = [decoders.Strip(" ", 1, 0)] if model.normalizer_spec.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *prefix]
    )
    tokenizer.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type != _USER_DEFINED)
            for piece in model.pieces
            if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]
    )
    bos = _processor(model_file).bos_id()
    if bos >= 0:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{pieces[bos]} $A",
            pair=f"{pieces[bos]} $A {pieces[bos]}:1 $B:1",
            special_tokens=[(pieces[bos], bos)],
        )
    _check_same_ids(tokenizer, model_file)
    return tokenizer


def tokenizer_settings(model_file: Path, context: int) -> dict[str, Any]:
    """Return the contents of tokenizer_config.json for what `build_tokenizer` made; `context` is in tokens."""
    model, special = _parse(model_file), special_tokens({"tokenizer.model": model_file})

    def text(token: int | None) -> str | None:
        return None if token is None else model.pieces[token].piece

    return {
        # the class that takes tokenizer.json as it is; LlamaTokenizer of transformers 5 builds its own from the merges
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": text(special.bos),
        "eos_token": text(special.eos),
        "unk_token": next((piece.piece for piece in model.pieces if piece.type == _UNKNOWN), None),
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }


def _merges(model: Any) -> list[tuple[str, str]]:
    """Every way to put a piece together from two, the best-scored piece first, as sentencepiece merges."""
    known = {piece.piece for piece in model.pieces}
    mergeable = [piece for piece in model.pieces if piece.type == _NORMAL and len(piece.piece) > 1]
    merges = []
    for piece in sorted(mergeable, key=lambda piece: -piece.score):
        for cut in range(1, len(piece.piece)):
            left, right = piece.piece[:cut], piece.piece[cut:]
            if left in known and right in known:
                merges.append((left, right))
    return merges


def _normalizer(spec: Any) -> Any:
    steps = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])


def _check_same_ids(tokenizer: Tokenizer, model_file: Path) -> None:
    processor = _processor(model_file)
    for text in _PROBES:
        ours, theirs = tokenizer.encode(text, add_special_tokens=False).ids, processor.encode(text)
        if ours != theirs:
            raise DataError(f"{model_file}: a tokenizer.json would encode {text!r} as {ours}, the model says {theirs}")


def _ranks(files: dict[str, Path]) -> int | None:
    """How many tiktoken ranks `tokenizer.model` holds, None if it is something else."""
    if "tokenizer.model" not in files:
        return None
    data = _bytes(files["tokenizer.model"])
    return data.count(b"\n") if _RANKS_LINE.match(data) else None


def _tokenizer_json(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the tokenizers library raises plain Exceptions
        raise DataError(f"{path}: the tokenizer cannot be read: {error}") from error


def _parse(model_file: Path) -> Any:
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(_bytes(model_file))
    except DecodeError as error:
        raise DataError(f"{model_file}: not a sentencepiece model: {error}") from error
    return model


def _processor(model_file: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=_bytes(model_file))
    except RuntimeError as error:
        raise DataError(f"{model_file}: not a sentencepiece model: {error}") from error


def _bytes(model_file: Path) -> bytes:
    try:
        return model_file.read_bytes()
    except OSError as error:
        raise DataError(f"{model_file}: {error.strerror}") from error
