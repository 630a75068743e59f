"""llama-generate: continue prompts with a checkpoint's model; `python -m llama_train.generate` does the same.

Under torchrun the model is sharded over the ranks, and the prompts are dealt out to them.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from llama_foundation.errors import ConfigError, DataError
from llama_foundation.files import publish_text
from llama_train.command import check_device, run_command

if TYPE_CHECKING:
    import torch.distributed as dist

    from llama_train.inference import Opened


@dataclass
class GenerateConfig:
    """What llama-generate is asked for."""

    checkpoint: str = MISSING  # a checkpoint, a run directory (its newest checkpoint) or a Hugging Face directory
    prompt: str = ""
    prompts: str | None = None  # a JSONL file of {"prompt": "..."}, in place of `prompt`
    output: str | None = None  # a JSONL file of {"prompt", "text"} to write; null: print
    max_new_tokens: int = 32
    temperature: float = 0.0  # 0: always the most likely token
    top_p: float = 0.9  # sample from the most likely tokens that together have this probability
    seed: int = 0  # of the first prompt; the one after it has seed + 1, and so on
    stop_ids: list[int] | None = None  # tokens that end a text; null: the tokenizer's end of text
    batch_size: int = 8  # prompts in one forward pass of one process
    tokenizer: str | None = None  # a file or directory; null: the one kept with the checkpoint
    device: str = "auto"  # auto, cpu or cuda

    def check(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature} must be at least 0, where 0 takes the likeliest token")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be above 0 and at most 1, where 1 keeps every token")
        if not 0 <= self.seed < 2**62:
            raise ConfigError(f"seed={self.seed} must be between 0 and 2**62 - 1")
        if self.prompt and self.prompts is not None:
            raise ConfigError(f"prompt={self.prompt!r} and prompts={self.prompts}: give one of them")
        check_device(self.device)


def run(config: GenerateConfig, store: dist.Store) -> None:
    """Print every prompt and what the model makes of it, or write them to `config.output`.

    Raises:
        CheckpointError, DataError: the checkpoint, its tokenizer or the file of prompts is missing or damaged.
        ConfigError: there is no tokenizer, it does not belong to the model, or a text does not fit into the context.
    """
    from llama_train.inference import opened  # late: it imports torch, which --help does not need

    prompts = [config.prompt] if config.prompts is None else read_prompts(Path(config.prompts))
    with opened(config.checkpoint, config.tokenizer, config.device, store) as model:
        texts = continue_texts(model, prompts, config)
        if model.peers.rank != 0:
            return
    if config.output is None:
        for text in texts:
            print(text)
    else:
        lines = (
            json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False) + "\n"
            for prompt, text in zip(prompts, texts, strict=True)
        )
        publish_text(Path(config.output), "".join(lines))
        print(f"{len(texts)} texts -> {config.output}")


def continue_texts(model: Opened, prompts: list[str], config: GenerateConfig) -> list[str]:
    """Return every prompt with its continuation, as text."""
    from llama_train.decode import Row, generate_together

    tokenizer = model.tokenizer
    encoded = [[tokenizer.bos_id, *ids.tolist()] for ids in tokenizer.encode_batch(prompts)]
    for number, ids in enumerate(encoded):
        _check_fits(len(ids), config.max_new_tokens, model.config.context, number if len(prompts) > 1 else None)
    stop_ids = tokenizer.end_of_text_ids if config.stop_ids is None else tuple(config.stop_ids)
    rows = [
        Row(ids, config.max_new_tokens, config.temperature, config.top_p, config.seed + number, stop_ids)
        for number, ids in enumerate(encoded)
    ]
    continued = generate_together(model.model, rows, model.peers, config.batch_size, tokenizer.vocabulary_size)
    return [tokenizer.decode([*ids, *more]) for ids, more in zip(encoded, continued, strict=True)]


def read_prompts(path: Path) -> list[str]:
    """Read a JSONL file of objects with a `prompt`.

    Raises:
        DataError: it cannot be read, or a line is something else; names the line.
    """
    prompts = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"prompts={path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f'{path}: line {number} is not {{"prompt": "..."}}') from error
        if not isinstance(prompt, str):
            raise DataError(f"{path}: line {number}: prompt is {prompt!r}, not text")
        prompts.append(prompt)
    if not prompts:
        raise DataError(f"prompts={path}: holds no prompt")
    return prompts


def _check_fits(prompt: int, new: int, context: int, number: int | None) -> None:
    if prompt + new <= context:
        return
    which = "prompt" if number is None else f"prompt {number}"
    raise ConfigError(
        f"{which} has {prompt} tokens, which with max_new_tokens={new} do not fit into the model's context of "
        f"{context}; "
        + (
            f"use max_new_tokens={context - prompt} or less"
            if prompt < context
            else f"use a prompt of less than {context} tokens"
        )
    )


def main() -> int:
    """Run the command line.

    The prompt is taken as it was typed: commas, quotes and braces in it mean nothing to Hydra.
    """
    prompts = [argument.removeprefix("prompt=") for argument in sys.argv[1:] if argument.startswith("prompt=")]
    sys.argv[1:] = [argument for argument in sys.argv[1:] if not argument.startswith("prompt=")]

    def command(config: GenerateConfig, store: dist.Store) -> None:
        config.prompt = prompts[-1] if prompts else config.prompt
        config.check()
        run(config, store)

    return run_command("generate", GenerateConfig, command)


if __name__ == "__main__":
    sys.exit(main())
