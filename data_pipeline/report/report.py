"""report.html: what went in, what was dropped and why. One file, no network, light and dark."""

import re
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import jinja2

from data_pipeline.config import DataPipelineConfig
from data_pipeline.filters.measure import Rule
from data_pipeline.read.rows import source_label
from data_pipeline.report import charts
from data_pipeline.report.statistics import HOST_SAMPLE, OPT_OUT, READ, StageStatistics, Tally, by_key, by_source, total
from data_pipeline.stages import STAGES
from data_pipeline.write import NAME as SHARDS
from llama_foundation.compose import dump
from llama_foundation.files import publish_text

MOST_HOSTS = 25
MOST_LANGUAGES = 40
MOST_SOURCES = 100

_OFFENSIVE = ("nsfw", "dirty", "bad_word", "flagged", "adult", "obscen", "profan", "porn")
"""Examples of a stage or rule with one of these in its name are hidden until they are asked for."""
_PERSONAL = ("pii", "personal_data")


def write_report(
    path: Path,
    config: DataPipelineConfig,
    stages: list[StageStatistics],
    contamination: dict[str, Any] | None = None,
) -> None:
    """Write the report of a run: its stages in their order, from reading to the shards.

    Args:
        contamination: what decontamination.json holds, where the run had that stage.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": "{:,}".format, "megabytes": megabytes, "percent": percent}
    environment.filters |= {"width": _width, "without_blank_lines": _without_blank_lines, "source": source_label}
    filters = [stage for stage in stages if stage.stage != SHARDS]
    shards = stages[-1]
    texts = total(shards.kept)[1]
    tokens = {split: token_count(shards, split) for split in ("train", "validation")}
    per_byte = sum(tokens.values()) / texts if texts else 0
    sources, languages = _sources(filters, shards), _languages(filters)
    page = environment.get_template("report.html.j2").render(
        config=config,
        settings=dump(config),
        seen=total(stages[0].seen),
        kept=total(filters[-1].kept),
        tokens=tokens,
        tokens_per_byte=per_byte,
        stages=[_stage(stage, _rules(stage, config), per_byte) for stage in filters],
        seconds=[_time(stage) for stage in stages],
        sources=sources[:MOST_SOURCES],
        more_sources=len(sources[MOST_SOURCES:]),
        languages=languages[:MOST_LANGUAGES],
        more_languages=len(languages[MOST_LANGUAGES:]),
        funnel=charts.funnel([("input", by_source(stages[0].seen))] + [(s.stage, by_source(s.kept)) for s in filters]),
        problems=_problems(filters[0]),
        clusters=[
            {"name": s.stage, "sizes": _clusters(s), "pairs": s.pairs} for s in filters if s.cluster_sizes or s.pairs
        ],
        personal=[(name, count) for s in filters if s.stage in _PERSONAL for name, count in _by_count(s.edits)],
        contamination=contamination,
        hosts=hosts(stages),
        opted_out=shards.noted.get(OPT_OUT, 0),
        licenses=sorted(shards.licenses.items(), key=lambda item: -item[1][1]),
    )
    publish_text(path, page)


def _rules(stage: StageStatistics, config: DataPipelineConfig) -> list[Rule]:
    known = STAGES.get(stage.stage)
    return known.rules(getattr(config.pipeline, stage.stage)) if known else []


def _stage(stage: StageStatistics, rules: list[Rule], tokens_per_byte: float) -> dict[str, Any]:
    seen, kept, reasons = total(stage.seen), total(stage.kept), stage.reasons()
    dropped = [sum(tally[place] for tally in reasons.values()) for place in range(2)]
    ruled = {f"{stage.stage}.{rule.reason}" for rule in rules}
    rows = [_reason(stage, reason, None, tokens_per_byte) for reason in reasons if reason not in ruled]
    rows += [_reason(stage, f"{stage.stage}.{rule.reason}", rule, tokens_per_byte) for rule in rules]
    shown = {f"{stage.stage}.{rule.score}" for rule in rules}
    return {
        "name": stage.stage,
        "seen": seen,
        "kept": kept,
        "dropped": dropped,
        "is_text": stage.stage != READ,  # what could not be read may be pictures
        "edited_bytes": seen[1] - dropped[1] - kept[1],
        "abstained": together(stage.abstained, f"{stage.stage}."),
        "edits": _by_count(stage.edits),
        "noted": _by_count(stage.noted),
        "rules": sorted(rows, key=lambda row: -row["tally"][0]),
        "scores": [
            {"name": name, "picture": charts.histogram(bins)}
            for name, bins in stage.histograms.items()
            if name not in shown and bins
        ],
        "examples": stage.kept_examples.get(stage.stage, []),
        "offensive": _offensive(stage.stage),
    }


def _reason(stage: StageStatistics, reason: str, rule: Rule | None, tokens_per_byte: float) -> dict[str, Any]:
    tally = stage.reasons().get(reason, [0, 0])
    documents = total(stage.seen)[0]
    row = {
        "name": reason,
        "short": reason.removeprefix(f"{stage.stage}."),
        "tally": tally,
        "share": tally[0] / documents if documents else 0,
        "tokens": round(tally[1] * tokens_per_byte),
        "picture": "",
        "cut": "",
        "failed": stage.failed.get(reason, tally),
        "measured": 0,
        "examples": stage.examples.get(reason, []),
        "near_dropped": stage.near_dropped.get(reason, []),
        "near_kept": stage.near_kept.get(reason, []),
        "offensive": _offensive(reason),
        "score": "",
    }
    if rule:
        bins = stage.histograms.get(f"{stage.stage}.{rule.score}", {})
        limits = [
            f"{name} {limit:g}"
            for name, limit in (("at least", rule.minimum), ("at most", rule.maximum))
            if isfinite(limit)
        ]
        row |= {
            "picture": charts.histogram(bins, rule.minimum, rule.maximum),
            "cut": " and ".join(limits),
            "measured": sum(bins.values()),
            "score": rule.score,
        }
    return row


def _time(stage: StageStatistics) -> dict[str, Any]:
    size, seconds = total(stage.seen)[1], stage.cpu_milliseconds / 1000
    return {"name": stage.stage, "bytes": size, "seconds": seconds, "speed": size / 1e6 / seconds if seconds else None}


def _sources(filters: list[StageStatistics], shards: StageStatistics) -> list[dict[str, Any]]:
    """Return one row per source: what every stage left of it, and for which reasons the rest was dropped."""
    seen = by_source(filters[0].seen)
    kept = [(stage.stage, by_source(stage.kept)) for stage in filters]
    dropped: dict[str, list[tuple[str, Tally]]] = {}
    for source, reasons in ((source, reasons) for stage in filters for source, reasons in stage.dropped.items()):
        dropped.setdefault(source, []).extend(reasons.items())
    return [
        {
            "name": source,
            "seen": seen[source],
            "left": [(name, each.get(source, [0, 0])) for name, each in kept],
            "kept": kept[-1][1].get(source, [0, 0]),
            "reasons": sorted(dropped.get(source, []), key=lambda item: (-item[1][0], item[0])),
            "tokens": sum(shards.tokens.get(source, {}).values()),
        }
        for source in sorted(seen, key=lambda source: -seen[source][1])
    ]


def _languages(filters: list[StageStatistics]) -> list[dict[str, Any]]:
    """Return one row per language; a stage may find another one than the input names."""
    seen, kept = by_key(filters[0].seen), by_key(filters[-1].kept)
    rows = [
        {"name": name, "seen": seen.get(name, [0, 0]), "kept": kept.get(name, [0, 0])}
        for name in seen.keys() | kept.keys()
    ]
    return sorted(rows, key=lambda row: (-max(row["seen"][1], row["kept"][1]), row["name"]))


def _problems(read: StageStatistics) -> list[dict[str, Any]]:
    if read.stage != READ:
        return []
    return [
        {"name": reason, "tally": tally, "examples": read.examples.get(reason, [])}
        for reason, tally in read.reasons().items()
    ]


def _clusters(stage: StageStatistics) -> list[tuple[str, int, int]]:
    """Return (copies, clusters, documents in them), larger sizes in powers of two."""
    rows: dict[tuple[int, int], list[int]] = {}
    for size, clusters in ((int(size), clusters) for size, clusters in stage.cluster_sizes.items()):
        low = size if size < 8 else 1 << (size.bit_length() - 1)
        row = rows.setdefault((low, size if size < 8 else 2 * low - 1), [0, 0])
        row[0] += clusters
        row[1] += clusters * size
    return [(f"{low}" if low == high else f"{low} to {high}", *row) for (low, high), row in sorted(rows.items())]


def hosts(stages: list[StageStatistics]) -> dict[str, Any]:
    """Return the most frequent hosts with how many documents were kept and dropped, scaled up from the samples."""
    found: dict[str, dict[str, float]] = {}
    exact = True
    for stage in stages:
        for outcome, sample in stage.hosts.items():
            weight = stage.urls[outcome] / len(sample)
            exact &= len(sample) < HOST_SAMPLE or weight == 1
            for _, host in sample:
                row = found.setdefault(host, {"kept": 0, "dropped": 0})
                row[outcome] += weight
    rows = [
        {"name": name, **{outcome: round(number) for outcome, number in row.items()}} for name, row in found.items()
    ]
    rows.sort(key=lambda row: (-row["kept"] - row["dropped"], row["name"]))
    return {"rows": rows[:MOST_HOSTS], "count": len(rows), "exact": exact, "error": sqrt(0.1 * 0.9 / HOST_SAMPLE)}


def token_count(shards: StageStatistics, split: str) -> int:
    """Return the tokens of all sources in a split."""
    return sum(counts.get(split, 0) for counts in shards.tokens.values())


def _offensive(name: str) -> bool:
    return any(word in name for word in _OFFENSIVE)


def _by_count(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def together(counts: dict[str, int], prefix: str = "") -> list[tuple[int, list[str]]]:
    """Return (documents, the rules that abstained on so many), largest first: most rules abstain on the same ones."""
    rules: dict[int, list[str]] = {}
    for name, documents in sorted(counts.items()):
        rules.setdefault(documents, []).append(name.removeprefix(prefix))
    return sorted(rules.items(), reverse=True)


def megabytes(size: int) -> str:
    """Return a size for people."""
    if size >= 1e11:
        return f"{size / 1e9:,.0f} GB"
    if size >= 1e5:
        return f"{size / 1e6:,.1f} MB"
    return f"{size / 1e3:,.1f} kB" if size >= 1e3 else f"{size} B"


def percent(part: Tally | float, whole: Tally | float = 1) -> str:
    """Return a share for people; of two tallies, that of the documents."""
    part, whole = (value[0] if isinstance(value, list) else value for value in (part, whole))
    if not whole:
        return "-"
    share = 100 * part / whole
    return "< 0.1 %" if 0 < share < 0.05 else f"{share:.1f} %"


def _without_blank_lines(text: str) -> str:
    return re.sub(r"\n\s*\n", "\n", text.strip("\n"))


def _width(part: Tally | float, whole: Tally | float = 1) -> str:
    """Return the width of a bar in CSS."""
    part, whole = (value[0] if isinstance(value, list) else value for value in (part, whole))
    return f"{100 * part / whole:.2f}%" if whole else "0"
