"""llama-pack shards=DIR sequence_length=N: best-fit packs of the training documents, beside their shards.

Also `python -m data_pipeline.pack`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from data_pipeline.shards.pack_writer import BLOCK_DOCUMENTS, write_packs
from data_pipeline.shards.packs import LONGEST_PACK, NOTHING, PackStatistics
from data_pipeline.shards.reader import open_root
from llama_foundation import compose
from llama_foundation.errors import ConfigError


@dataclass
class PackConfig:
    """Which shards to pack, for which sequence length."""

    shards: str = MISSING  # the output directory of llama-data
    sequence_length: int = MISSING  # tokens: data.sequence_length of the training run
    block_documents: int = BLOCK_DOCUMENTS  # packed together; a run with several lengths shares documents by blocks

    def check(self) -> None:
        for name, least, most in (("sequence_length", 1, LONGEST_PACK), ("block_documents", 1, 2**31 - 1)):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name}={getattr(self, name)} must be between {least} and {most}")


def main() -> int:
    """Run llama-pack; return the exit status."""
    return compose.main("pack", PackConfig, pack)


def pack(config: PackConfig) -> None:
    """Pack every training source and print what that does against concatenate-and-cut.

    Raises:
        DataError: the shards are missing or damaged, or the disk refuses.
    """
    root = open_root(Path(config.shards))
    sources = {source: root.open("train", source) for source in root.sources("train")}
    statistics: dict[str, PackStatistics] = {}
    console = Console()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for source, shards in sources.items():
            bar = progress.add_task(source, total=shards.documents)
            packs = write_packs(
                shards,
                config.sequence_length,
                config.block_documents,
                progress=lambda count, bar=bar: progress.advance(bar, count),
            )
            statistics[source] = packs.manifest.statistics
    console.print(
        f"Packed for sequences of {config.sequence_length:,} tokens, against concatenate and cut",
        highlight=False,
        markup=False,
    )
    console.print(_table(statistics, config.sequence_length))
    console.print(
        f"in {root.path}/train/<source>/packs-{config.sequence_length}; train with data.packing=best_fit",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _table(statistics: dict[str, PackStatistics], sequence_length: int) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1))
    headings = ("source", "packing", "sequences", "cut", "their tokens", "padding", "unused")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < 2 else "right", overflow="fold")
    rows = dict(statistics)
    if len(rows) > 1:
        rows["all"] = sum(statistics.values(), NOTHING)
    for source, s in rows.items():
        padding = _share(s.padding_tokens, s.packs * sequence_length)
        cut = _share(s.cut_documents, s.documents), _share(s.tokens_of_cut_documents, s.tokens)
        table.add_row(source, "best fit", f"{s.packs:,}", *cut, padding, _share(0, s.tokens))
        cut = (
            _share(s.concatenate_cut_documents, s.documents),
            _share(s.concatenate_tokens_of_cut_documents, s.tokens),
        )
        unused = _share(s.concatenate_unused_tokens, s.tokens)
        table.add_row("", "concatenate", f"{s.windows:,}", *cut, _share(0, 1), unused)
    return table


def _share(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.2%}"


if __name__ == "__main__":
    sys.exit(main())
