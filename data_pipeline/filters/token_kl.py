"""Documents whose words are not distributed like the corpus' (Dubey et al. 2024, arXiv:2407.21783, section 3.1.1).

Llama 3 drops "documents containing excessive numbers of outlier tokens" by the Kullback-Leibler divergence of their
token distribution from the corpus'. Which tokens, and the threshold, the paper does not say. Here words are counted,
by hash, in a table of 2^table_bits cells, and

    KL(document || corpus) = sum over cells of p log(p / q), in nats,

with p the share of the document's words in a cell, and q the share of the corpus', in which every cell counts one
more. First all documents are counted, then each is scored. The counts are integers that add up, so neither depends on
how the work is cut. Two words share a cell with a probability of 2^-table_bits: the divergence is a little too small.

Memory per worker: a block, and 8 bytes for each cell.
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numba
import numpy as np
import pyarrow as pa

from data_pipeline.batches import load_documents, write_documents
from data_pipeline.chain import Chain, all_blocks, block_label
from data_pipeline.document import Documents
from data_pipeline.engines.work import Block, Commit, Task, read_block, total_statistics, write_blocks
from data_pipeline.filters.measure import Measurement, Rule
from data_pipeline.filters.words import WordRules, where
from data_pipeline.report.statistics import StageStatistics

NAME = "token_kl"
VERSION = 1


@dataclass
class TokenKL(WordRules):
    """The numbers are ours: the paper gives none."""

    max_divergence: float = 7.0  # nats
    table_bits: int = 18  # the corpus' counts take 8 bytes times 2 to the power of this


def run(chain: Chain, blocks: list[Block], settings: TokenKL) -> tuple[list[Block], list[StageStatistics]]:
    """Count the words of all documents, then score each and drop those too far off."""
    inputs = [VERSION, {name: getattr(value, "value", value) for name, value in asdict(settings).items()}]
    counting = [(block, settings) for block in blocks]
    counted = all_blocks(chain.phase(f"{NAME}.count", inputs, _count_task, counting, block_label))
    total = chain.phase(f"{NAME}.total", None, _total_task, [(counted, settings)], lambda _: "the corpus' words")
    payloads = [(block, all_blocks(total)[0], settings, chain.seed) for block in blocks]
    commits = chain.phase(NAME, None, _score_task, payloads, block_label)
    return all_blocks(commits), total_statistics(commits, [NAME])


def rules(settings: TokenKL) -> list[Rule]:
    """Return the threshold."""
    return [Rule("unlike_the_corpus", "divergence", maximum=settings.max_divergence)]


def measure(corpus: np.ndarray, documents: Documents, settings: TokenKL) -> Measurement:
    """Measure a batch against the corpus' counts, int64 [2^table_bits]."""
    words = settings.spans(documents.texts)
    found = divergences(words.hashes, words.first, words.last, corpus)
    return Measurement({"divergence": where(settings.applies(documents.texts) & (words.counts > 0), found)})


@numba.njit(cache=True, nogil=True)
def count_words(hashes: np.ndarray, first: np.ndarray, last: np.ndarray, counts: np.ndarray) -> None:
    """Add the words of all documents to `counts`, int64 [a power of two]."""
    mask = np.uint64(len(counts) - 1)
    for document in range(len(first)):
        for word in range(first[document], last[document]):
            counts[hashes[word] & mask] += 1


@numba.njit(cache=True, nogil=True)
def divergences(hashes: np.ndarray, first: np.ndarray, last: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    """Return float64 [documents]: KL(document || corpus) in nats, 0 for a document without words."""
    mask = np.uint64(len(corpus) - 1)
    own = np.zeros(len(corpus), np.int64)  # all zero again after each document
    whole = np.float64(corpus.sum() + len(corpus))
    found = np.zeros(len(first))
    for document in range(len(first)):
        length = last[document] - first[document]
        for word in range(first[document], last[document]):
            own[hashes[word] & mask] += 1
        divergence = 0.0
        for word in range(first[document], last[document]):
            cell = hashes[word] & mask
            if own[cell]:
                share = own[cell] / length
                divergence += share * np.log(share * whole / (corpus[cell] + 1))
                own[cell] = 0
        found[document] = divergence
    return found


def _count_task(folder: Path, task: Task) -> Commit:
    block, settings = task.payload
    words = settings.spans(load_documents(block).texts)
    counts = np.zeros(2**settings.table_bits, np.int64)
    count_words(words.hashes, words.first, words.last, counts)
    return _write_counts(folder / f"{task.name}.arrow", counts)


def _total_task(folder: Path, task: Task) -> Commit:
    blocks, settings = task.payload
    counts = np.zeros(2**settings.table_bits, np.int64)
    for block in blocks:
        counts += _read_counts(block)
    return _write_counts(folder / f"{task.name}.arrow", counts)


def _score_task(folder: Path, task: Task) -> Commit:
    from data_pipeline.stages import LocalStage, apply_local  # the table of stages names this module

    block, total, settings, seed = task.payload
    statistics = StageStatistics(NAME)
    stage = LocalStage(NAME, VERSION, partial(measure, _read_counts(total)), rules)
    kept = apply_local(stage, load_documents(block), settings, statistics, seed)
    return Commit(write_documents(folder / f"{task.name}.arrow", kept), [statistics])


def _write_counts(path: Path, counts: np.ndarray) -> Commit:
    return Commit(write_blocks(path, [("", pa.table({"count": counts}))]))


def _read_counts(block: Block) -> np.ndarray:
    return read_block(block)["count"].to_numpy()
