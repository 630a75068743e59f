"""URLs on lists of sites to leave out: the user's files, as the UT1 blacklists have them.

A folder of such a list holds `domains` (one host per line: it and every host below it) and `urls` (host and path,
without scheme and "www.": that page and every page below it), plain or .gz.
"""

import gzip
import ipaddress
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import xxhash

from data_pipeline.document import Documents
from data_pipeline.filters.measure import Measurement, Rule
from llama_foundation.errors import ConfigError, DataError

NAME = "url_list"
VERSION = 1


@dataclass
class UrlList:
    """Which lists; a document without a URL is kept."""

    folders: list[str] = field(default_factory=list)  # each holds domains, urls or both: ut1/adult
    domains: list[str] = field(default_factory=list)  # more files of hosts
    urls: list[str] = field(default_factory=list)  # more files of pages
    allowed_domains: list[str] = field(default_factory=list)  # hosts that are never dropped, nor those below them

    def check(self) -> None:
        if not (self.folders or self.domains or self.urls):
            raise ConfigError("url_list names no list; give folders such as url_list.folders=[ut1/adult], or its files")
        list_files(self)


@dataclass(frozen=True)
class Lists:
    """Sorted 64-bit hashes: of 5 million hosts, 40 MB; that one URL meets another's hash has odds of 1 to 10**12."""

    domains: np.ndarray  # uint64
    urls: np.ndarray  # uint64
    allowed: frozenset[str]


def files(settings: UrlList) -> list[Path]:
    """Return the files whose content decides what is kept."""
    domains, urls = list_files(settings)
    return [*domains, *urls]


def rules(settings: UrlList) -> list[Rule]:
    """Return nothing: a URL is on a list or not."""
    return []


def measure(documents: Documents, settings: UrlList) -> Measurement:
    """Look up the URLs of a batch."""
    domain, url, without = listed(documents.batch["url"], settings)
    return Measurement(scores={}, drops={"domain": domain, "url": url}, counts={"without_url": without})


def listed(column: pa.Array, settings: UrlList) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (bool [documents] by host, the same by page, how many have no URL that can be read)."""
    lists = _load(*map(tuple, list_files(settings)), tuple(settings.allowed_domains))
    by_domain = np.zeros(len(column), bool)
    by_url = np.zeros(len(column), bool)
    without = 0
    for row, url in enumerate(column.to_pylist()):
        split = split_url(url) if url else None
        if split is None:
            without += 1
            continue
        host, path = split
        hosts = parents(host)
        if lists.allowed.isdisjoint(hosts):
            by_domain[row] = _contains(lists.domains, hosts)
            by_url[row] = _contains(lists.urls, pages(host, path))
    return by_domain, by_url, without


def list_files(settings: UrlList) -> tuple[list[Path], list[Path]]:
    """Return (files of hosts, files of pages).

    Raises:
        ConfigError: a file does not exist, or a folder holds no list.
    """
    domains = list(map(Path, settings.domains))
    urls = list(map(Path, settings.urls))
    for folder in map(Path, settings.folders):
        count = len(domains) + len(urls)
        for name, paths in (("domains", domains), ("urls", urls)):
            paths += [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if count == len(domains) + len(urls):
            raise ConfigError(f"url_list.folders: {folder} holds neither domains nor urls (.gz or not)")
    for setting, paths in (("domains", domains), ("urls", urls)):
        for path in paths:
            if not path.is_file():
                raise ConfigError(f"url_list.{setting}: {path} does not exist")
    return domains, urls


def split_url(url: str) -> tuple[str, str] | None:
    """Return (host in lower case and punycode, path with the query) of a URL with or without its scheme."""
    try:
        parts = urlsplit(url.strip() if "://" in url else f"//{url.strip()}")
        host = (parts.hostname or "").rstrip(".")
        if not host.isascii():
            host = host.encode("idna").decode()
    except (ValueError, UnicodeError):
        return None
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    return (host, path) if host else None


def parents(host: str) -> list[str]:
    """Return a host and those above it, down to two labels: a.b.example.com, b.example.com, example.com."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        labels = host.split(".")
        return [".".join(labels[first:]) for first in range(max(len(labels) - 1, 1))]
    return [host]


def pages(host: str, path: str) -> list[str]:
    """Return a page and those above it as the lists write them: example.com/a/b, example.com/a, example.com."""
    host = host.removeprefix("www.")
    prefixes = [path[:end] for end, character in enumerate(path) if character in "/?#"]
    return [host + prefix.rstrip("/") for prefix in dict.fromkeys([path, *prefixes])]


def _contains(hashes: np.ndarray, values: list[str]) -> bool:
    if not len(hashes):
        return False
    wanted = np.array([xxhash.xxh3_64_intdigest(value.encode()) for value in values], np.uint64)
    places = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
    return bool((hashes[places] == wanted).any())


@lru_cache(maxsize=4)
def _load(domains: tuple[Path, ...], urls: tuple[Path, ...], allowed: tuple[str, ...]) -> Lists:
    def hosts() -> Iterator[int]:
        for path in domains:
            for number, line in _entries(path):
                host = line.lower().strip(".")
                if "." not in host and ":" not in host:
                    raise DataError(
                        f"{path}, line {number}: {line!r} is a whole top-level domain, not a host; remove the line"
                    )
                split = split_url(host)
                yield xxhash.xxh3_64_intdigest((split[0] if split else host).encode())

    def of_pages() -> Iterator[int]:
        for path in urls:
            for _, line in _entries(path):
                if split := split_url(line):
                    yield xxhash.xxh3_64_intdigest((split[0].removeprefix("www.") + split[1].rstrip("/")).encode())

    def sorted_hashes(values: Iterator[int]) -> np.ndarray:
        return np.unique(np.fromiter(values, np.uint64))

    return Lists(sorted_hashes(hosts()), sorted_hashes(of_pages()), frozenset(map(str.lower, allowed)))


def _entries(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                entry = line.decode("utf-8", "replace").strip()
                if entry and not entry.startswith("#"):
                    yield number, entry
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read to its end: {error}") from error
