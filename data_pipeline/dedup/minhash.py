"""Near-duplicates: of all documents whose shingle sets are similar, one stays.

MinHash signatures in bands find candidates (`signatures`, `bands`), their connected components (`components`) bring
them together, exact Jaccard similarity joins near-copies to clusters (`clusters`), and the best of each stays
(`survivors`). FineWeb (Penedo et al. 2024, section 3.4) has 14 bands of 8 rows over shingles of 5 words and does not
verify. The default of 16 bands of 7 is as many signature values and misses less: it finds a pair of Jaccard similarity
0.75 with probability 0.90 instead of 0.77. It has more false candidates; verification takes them out.

Memory per worker: one block of documents with half its bytes of scratch, or about 100 bytes for each of ROWS_PER_BUCKET
band keys or edges, or the shingles of a bucket (8 bytes each, SHINGLES_PER_BUCKET on average, from disk above
`verify.SPILL_BYTES`) with 300 bytes per document; plus 100 bytes for each document of the largest candidate component.
"""

from dataclasses import dataclass

from data_pipeline.chain import Chain
from data_pipeline.dedup import bands, verify
from data_pipeline.dedup.components import components
from data_pipeline.dedup.shuffle import first_numbers
from data_pipeline.dedup.survivors import KeepOrder, plain, take_out
from data_pipeline.engines.work import Block, group_blocks
from data_pipeline.report.statistics import StageStatistics
from llama_foundation.errors import ConfigError

NAME = "minhash_dedup"
VERSION = 2

ROWS_PER_BUCKET = 4_000_000
SHINGLES_PER_BUCKET = 16_000_000


@dataclass
class MinHashDedup(KeepOrder):
    """What near-copies are, which of them compete, and which stays."""

    bands: int = 16
    rows: int = 7  # signature values per band
    words: int = 5  # per shingle
    characters: int = 8  # per shingle where the script has no spaces; about five words of Chinese
    fold_digits: bool = False  # every decimal digit is a 0: pages that differ in their numbers alone are copies
    min_jaccard: float = 0.6  # of the shingle sets, for candidates to be near-copies; 0: every candidate is one
    window: int = 64  # documents of a band key that each is compared with

    @property
    def name(self) -> str:
        return NAME

    def check(self) -> None:
        for setting in ("bands", "rows", "words", "characters", "window"):
            value = getattr(self, setting)
            if not 1 <= value <= 1000:
                raise ConfigError(f"pipeline.{NAME}.{setting}={value} must be between 1 and 1000")
        if not 0 <= self.min_jaccard <= 1:
            raise ConfigError(f"pipeline.{NAME}.min_jaccard={self.min_jaccard} must be between 0 and 1; 0: no check")


def run(chain: Chain, blocks: list[Block], settings: MinHashDedup) -> tuple[list[Block], list[StageStatistics]]:
    """Keep one document of each cluster of near-copies."""
    numbers = first_numbers(blocks)
    buckets = 1 + int(numbers[-1]) * settings.bands // ROWS_PER_BUCKET
    payloads = [
        bands.Signing(block, int(first), settings, buckets) for block, first in zip(blocks, numbers, strict=False)
    ]
    signed = chain.phase(
        f"{NAME}.signatures",
        [VERSION, plain(settings), buckets],
        bands.sign_task,
        payloads,
        lambda each: each.block.path,
    )
    keyed = {group: found for group, found in group_blocks(signed).items() if group.startswith(bands.BAND)}
    payloads = [(keyed[group], buckets, NAME) for group in sorted(keyed)]
    chained = chain.phase(f"{NAME}.bands", None, bands.chain_task, payloads, _first_path)
    stars = components(chain, NAME, [*signed, *chained], buckets)
    payloads = [(found, numbers) for _, found in sorted(group_blocks(stars).items())]
    labelled = chain.phase(f"{NAME}.components", None, verify.label_task, payloads, _first_path)
    buckets = 1 + sum(commit.notes["shingles"] for commit in signed) // SHINGLES_PER_BUCKET
    labels = group_blocks(labelled)
    payloads = [
        verify.Gathering(block, number, tuple(labels[str(number)]), settings, buckets)
        for number, block in enumerate(blocks)
        if str(number) in labels
    ]
    gathered = chain.phase(f"{NAME}.shingles", buckets, verify.gather_task, payloads, _path)
    payloads = [(bucket, found, settings) for bucket, found in sorted(group_blocks(gathered).items())]
    decided = chain.phase(
        f"{NAME}.clusters", None, verify.verify_task, payloads, lambda payload: f"bucket {payload[0]}"
    )
    return take_out(chain, NAME, "near_duplicate", blocks, decided, [*signed, *chained, *gathered])


def _path(payload: bands.Signing | verify.Gathering) -> str:
    return payload.block.path


def _first_path(payload: tuple) -> str:
    return payload[0][0].path
