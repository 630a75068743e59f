"""When weights and optimizer state are written, and which are kept."""

from dataclasses import dataclass

from llama_foundation.errors import ConfigError
from llama_train.config.checks import at_least


@dataclass
class CheckpointConfig:
    """When weights and optimizer state are written, and which are kept."""

    every: int = 0  # optimizer steps; 0: only at the end and when asked to stop
    keep_last: int = 2  # the newest n stay
    keep_every: int = 0  # steps divisible by this stay for good; 0: none
    asynchronous: bool = False  # write in the background, from a copy in host memory
    fast: str | None = None  # parent of a second, faster tier: a directory that all ranks share, or
    fast_per_node: bool = False  # that every node has for itself; only the same layout can read it
    fast_every: int = 0  # optimizer steps between checkpoints there
    fast_keep_last: int = 1  # the newest n stay there
    init_from: str | None = None  # a checkpoint or Hugging Face directory: its weights, a fresh optimizer
    init_optimizer: bool = False  # with init_from: AdamW's moments and count of updates too

    def check(self) -> None:
        for name, least in (
            ("every", 0),
            ("keep_last", 1),
            ("keep_every", 0),
            ("fast_every", 0),
            ("fast_keep_last", 1),
        ):
            at_least(f"checkpoint.{name}", getattr(self, name), least)
        if self.init_optimizer and self.init_from is None:
            raise ConfigError("checkpoint.init_optimizer=true needs checkpoint.init_from=DIR, whose state is taken")
        if (self.fast is None) != (self.fast_every == 0):
            raise ConfigError(
                f"checkpoint.fast={self.fast} and checkpoint.fast_every={self.fast_every} go together: where the fast "
                "tier is, and how often it is written; set both, or neither"
            )
