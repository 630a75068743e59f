"""llama-generate: continue a prompt with a checkpoint's model."""

import math
import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import MISSING

from data_pipeline.tokenize import load_tokenizer
from llama_foundation import compose
from llama_foundation.errors import ConfigError, RunError
from llama_train.checkpoint.load import load_model


@dataclass
class GenerateConfig:
    """What llama-generate is asked for."""

    checkpoint: str = MISSING  # a checkpoint, a run directory (its newest checkpoint) or a Hugging Face directory
    prompt: str = ""
    max_new_tokens: int = 32
    temperature: float = 0.0  # 0: always the most likely token
    top_p: float = 0.9  # sample from the most likely tokens that together have this probability
    seed: int = 0
    tokenizer: str | None = None  # a file or directory; null: the one kept with the checkpoint
    device: str = "auto"  # auto, cpu or cuda

    def check(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature} must be at least 0, where 0 takes the likeliest token")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be above 0 and at most 1, where 1 keeps every token")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed} must be between 0 and 2**63 - 1")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device={self.device}; use auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device=cuda, but torch finds no CUDA device here; use device=cpu")


@torch.inference_mode()
def generate(
    model: Any,
    token_ids: list[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    stop_ids: Collection[int],
    vocabulary_size: int | None = None,
) -> list[int]:
    """Return the tokens that continue `token_ids`, up to a stop token (left out) or `max_new_tokens`.

    Args:
        model: tokens [1, S] int64 to logits [1, S, V]. It runs over the whole text again for every token.
        token_ids: the prompt, at least one token (bos).
        temperature: logits are divided by it; 0 takes the largest logit instead of sampling.
        top_p: see `nucleus`.
        seed: of the draws. They are made on the CPU, so that a seed means the same on every device.
        vocabulary_size: only ids below it are chosen; a model may have more outputs than its tokenizer has tokens.

    Raises:
        RunError: the model gives numbers that are not finite.
    """
    parameter = next(iter(model.parameters()), None)
    tokens = torch.tensor([token_ids], device=None if parameter is None else parameter.device)
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    while len(chosen) < max_new_tokens:
        logits = model(tokens)[0, -1, :vocabulary_size].to("cpu", torch.float64)
        if not logits.isfinite().all():
            raise RunError(f"the model's output after {tokens.shape[1]} tokens is not finite; use an older checkpoint")
        if temperature == 0:
            token_id = int(logits.argmax())
        else:
            probabilities = nucleus(torch.softmax(logits / temperature, dim=-1), top_p)
            token_id = int(torch.multinomial(probabilities, 1, generator=generator))
        if token_id in stop_ids:
            break
        chosen.append(token_id)
        tokens = torch.cat([tokens, tokens.new_tensor([[token_id]])], dim=1)
    return chosen


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the fewest most likely tokens whose probabilities reach `top_p`, scaled to sum to 1; the others get 0.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1. Of equally likely tokens the
    lower id comes first.
    """
    ordered, order = probabilities.sort(descending=True, stable=True)
    before = torch.cat([ordered.new_zeros(1), ordered.cumsum(dim=0)[:-1]])
    kept = torch.where(before < top_p, ordered, 0)
    return torch.zeros_like(probabilities).scatter(0, order, kept / kept.sum())


def run(config: GenerateConfig) -> None:
    """Print the prompt and what the model makes of it.

    Raises:
        CheckpointError, DataError: the checkpoint or its tokenizer is missing or damaged.
        ConfigError: there is no tokenizer, it does not belong to the model, or the text does not fit into the context.
    """
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model, model_config, tokenizer_directory = load_model(config.checkpoint, device=device)
    where = config.tokenizer or tokenizer_directory
    if where is None:
        raise ConfigError(f"checkpoint={config.checkpoint} has no tokenizer with it; add tokenizer=FILE")
    tokenizer = load_tokenizer(where)
    if tokenizer.vocabulary_size > model_config.vocab_size:
        raise ConfigError(
            f"the tokenizer {tokenizer.path} has {tokenizer.vocabulary_size} tokens, the model of "
            f"checkpoint={config.checkpoint} only {model_config.vocab_size}: it was trained with another one"
        )
    prompt = [tokenizer.bos_id, *tokenizer.encode_batch([config.prompt])[0].tolist()]
    if len(prompt) + config.max_new_tokens > model_config.context:
        raise ConfigError(
            f"prompt has {len(prompt)} tokens, which with max_new_tokens={config.max_new_tokens} do not fit into the "
            f"model's context of {model_config.context}; "
            + (
                f"use max_new_tokens={model_config.context - len(prompt)} or less"
                if len(prompt) < model_config.context
                else f"use a prompt of less than {model_config.context} tokens"
            )
        )
    continuation = generate(
        model.eval(),
        prompt,
        config.max_new_tokens,
        config.temperature,
        config.top_p,
        config.seed,
        stop_ids=(tokenizer.eos_id,),
        vocabulary_size=tokenizer.vocabulary_size,
    )
    print(tokenizer.decode([*prompt, *continuation]))


def main() -> int:
    """Run the command line.

    The prompt is taken as it was typed: commas, quotes and braces in it mean nothing to Hydra.
    """
    prompts = [argument.removeprefix("prompt=") for argument in sys.argv[1:] if argument.startswith("prompt=")]
    sys.argv[1:] = [argument for argument in sys.argv[1:] if not argument.startswith("prompt=")]

    def command(config: GenerateConfig) -> None:
        config.prompt = prompts[-1] if prompts else config.prompt
        run(config)

    return compose.main("generate", GenerateConfig, command)


if __name__ == "__main__":
    sys.exit(main())
