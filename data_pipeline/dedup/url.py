"""Deduplication by URL: of all versions of a page, one stays, by default the newest (Llama Team 2024, section 3.1.1).

URLs are compared without scheme, `www.`, fragment, default port and trailing slash, with the host in lower case;
documents without a URL are left alone.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

import pyarrow as pa
import xxhash

from data_pipeline.chain import Chain
from data_pipeline.dedup.by_key import deduplicate
from data_pipeline.dedup.survivors import KeepOrder, Prefer
from data_pipeline.document import Documents
from data_pipeline.engines.work import Block
from data_pipeline.report.statistics import StageStatistics

NAME = "url_dedup"
VERSION = 1


@dataclass
class UrlDedup(KeepOrder):
    """Which versions compete, and which of them stays."""

    prefer: Prefer = Prefer.newest


def run(chain: Chain, blocks: list[Block], settings: UrlDedup) -> tuple[list[Block], list[StageStatistics]]:
    """Keep one document of each URL."""
    return deduplicate(chain, NAME, VERSION, keys, settings, blocks)


def keys(documents: Documents) -> pa.Array:
    """Return binary(16) [documents], null where there is no URL."""
    urls = documents.batch["url"].to_pylist()
    return pa.array([xxhash.xxh3_128_digest(normalise(url).encode()) if url else None for url in urls], pa.binary(16))


def normalise(url: str) -> str:
    """Return what two spellings of the same address have in common; a URL that cannot be parsed stays as it is."""
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").removeprefix("www."), parts.port
    except ValueError:
        return url.strip()
    if not host:
        return url.strip()
    shown_port = "" if port in (None, 80, 443) else f":{port}"
    query = f"?{parts.query}" if parts.query else ""
    return f"{host}{shown_port}{parts.path.rstrip('/')}{query}"
