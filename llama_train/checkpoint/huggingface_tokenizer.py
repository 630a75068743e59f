"""A tokenizer file as the tokenizer.json that transformers loads, giving the same ids."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

from data_pipeline.tokenize.huggingface import HuggingFaceTokenizer
from data_pipeline.tokenize.tiktoken import END_OF_TEXT
from data_pipeline.tokenize.tokenizer import read_tokenizer_file
from llama_foundation.errors import DataError
from llama_train.checkpoint.huggingface_byte_level import (
    build_byte_level,
    byte_level_settings,
    has_ranks,
    load_ranks,
)

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
    """Ids of the tokens around a document; None where the model has none.

    `end_of_text` are all ids after which a text ends, eos first.
    """

    bos: int | None
    eos: int | None
    end_of_text: tuple[int, ...] = ()

    def generation_eos(self) -> int | list[int] | None:
        """Return eos_token_id of generation_config.json: a list where there are several, as in Meta's own."""
        return list(self.end_of_text) if len(self.end_of_text) > 1 else self.eos


def special_tokens(files: dict[str, Path]) -> SpecialTokens:
    """Return the ids of bos and eos, from `tokenizer.model` or else from `tokenizer.json` and its configuration.

    Raises:
        DataError: a file is damaged.
    """
    if "tokenizer.model" in files and has_ranks(files["tokenizer.model"]):
        ranks = load_ranks(files["tokenizer.model"])
        return SpecialTokens(ranks.bos_id, ranks.eos_id, ranks.end_of_text_ids)
    if "tokenizer.model" in files:
        processor = _processor(files["tokenizer.model"])
        bos, eos = processor.bos_id(), processor.eos_id()
        return SpecialTokens(None if bos < 0 else bos, None if eos < 0 else eos, () if eos < 0 else (eos,))
    if "tokenizer.json" not in files:
        return SpecialTokens(None, None)
    if "tokenizer_config.json" not in files:
        plain = HuggingFaceTokenizer(files["tokenizer.json"], read_tokenizer_file(files["tokenizer.json"]))
        return SpecialTokens(plain.bos_id, plain.eos_id, plain.end_of_text_ids)
    tokenizer = _tokenizer_json(files["tokenizer.json"])
    try:
        settings = json.loads(files["tokenizer_config.json"].read_bytes())
        named = [settings.get(field) for field in ("bos_token", "eos_token")]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{files['tokenizer_config.json']}: cannot be read: {error}") from error
    texts = [token.get("content") if isinstance(token, dict) else token for token in named]
    bos, eos = (tokenizer.token_to_id(text) if isinstance(text, str) else None for text in texts)
    stops = [eos, *(tokenizer.token_to_id(text) for text in END_OF_TEXT)]
    return SpecialTokens(bos, eos, tuple(dict.fromkeys(stop for stop in stops if stop is not None)))


def build_tokenizer(model_file: Path) -> Tokenizer:
    """Build the fast tokenizer of a sentencepiece BPE model or a file of tiktoken ranks.

    With special tokens it puts bos in front, as Llama's do.

    Raises:
        DataError: it is no BPE model, or its ids on a few texts are not those of the model.
    """
    if has_ranks(model_file):
        tokenizer, ranks = build_byte_level(model_file), load_ranks(model_file)
        _check_same_ids(tokenizer, model_file, lambda text: ranks.encode_batch([text])[0].tolist())
        return tokenizer
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
    _check_same_ids(tokenizer, model_file, _processor(model_file).encode)
    return tokenizer


def tokenizer_settings(model_file: Path, context: int) -> dict[str, Any]:
    """Return the contents of tokenizer_config.json for what `build_tokenizer` made; `context` is in tokens."""
    if has_ranks(model_file):
        return byte_level_settings(context)
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


def json_settings(json_file: Path, context: int) -> dict[str, Any]:
    """Return the contents of tokenizer_config.json for a tokenizer.json that came without; `context` is in tokens.

    Raises:
        DataError: the file is damaged, or does not say which tokens begin and end a text.
    """
    special = special_tokens({"tokenizer.json": json_file})
    tokenizer = Tokenizer.from_file(str(json_file))
    names = {"bos_token": tokenizer.id_to_token(special.bos), "eos_token": tokenizer.id_to_token(special.eos)}
    return byte_level_settings(context) | names


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


def _check_same_ids(tokenizer: Tokenizer, model_file: Path, encode: Callable[[str], list[int]]) -> None:
    for text in _PROBES:
        ours, theirs = tokenizer.encode(text, add_special_tokens=False).ids, encode(text)
        if ours != theirs:
            raise DataError(f"{model_file}: a tokenizer.json would encode {text!r} as {ours}, the model says {theirs}")


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
