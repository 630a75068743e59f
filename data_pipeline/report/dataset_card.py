"""README.md beside the shards: a dataset card, made of what was counted and configured, and of nothing else.

The front matter follows the Hugging Face Hub's dataset cards. What the pipeline cannot know (who to ask, what the data
may be used for) is left open and says so.
"""

import re
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.config import DataPipelineConfig, flatten
from data_pipeline.read.rows import source_label
from data_pipeline.report.report import megabytes, percent, together, token_count
from data_pipeline.report.statistics import (
    NO_LICENSE,
    OPT_OUT,
    UNKNOWN_LANGUAGE,
    StageStatistics,
    by_key,
    by_source,
    total,
)
from data_pipeline.stages import STAGES, LocalStage
from llama_foundation.files import publish_text

FILE = "README.md"

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_SIZES += ((10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B"))
"""The Hub's size categories, in documents."""
_PERSONAL = ("pii", "personal_data")
_UNSAFE = "nsfw"


def write_card(path: Path, config: DataPipelineConfig, stages: list[StageStatistics]) -> None:
    """Write the card of a finished run: its stages in their order, from reading to the shards."""
    filters, shards = stages[:-1], stages[-1]
    front = yaml.safe_dump(_front_matter(shards), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{front}---\n",
        f"# {Path(config.output).resolve().name}\n",
        _summary(config, stages),
        "## Sources\n\n" + _sources(stages[0], shards),
        "## Languages\n\n" + _languages(shards),
        "## Licenses\n\n" + _licenses(shards),
        "## How it was made\n\n" + _stages(config, filters),
        "## Personal and unsafe content\n\n" + _statement(config, filters),
        "## Limits\n\n" + _limits(config, stages),
        "## Contact\n\nNot stated: whoever publishes this data set names a contact here.\n",
    ]
    publish_text(path, "\n".join(parts))


def _front_matter(shards: StageStatistics) -> dict[str, Any]:
    known = sorted(name for name in shards.licenses if name != NO_LICENSE)
    one = known[0].lower() if len(known) == 1 and NO_LICENSE not in shards.licenses else ""
    license_ = one if re.fullmatch("[a-z0-9.-]+", one) else "other" if known else "unknown"
    languages = {
        name.replace("_", "-").split("-")[0].lower() for name in by_key(shards.kept) if name != UNKNOWN_LANGUAGE
    }
    documents = total(shards.kept)[0]
    size = next((name for limit, name in _SIZES if documents < limit), "n>1T")
    return {
        "license": license_,
        **({"license_name": "see-licenses-below"} if license_ == "other" else {}),
        **({"language": sorted(languages)} if languages else {}),
        "task_categories": ["text-generation"],
        "size_categories": [size],
    }


def _summary(config: DataPipelineConfig, stages: list[StageStatistics]) -> str:
    seen, kept = total(stages[0].seen), total(stages[-1].kept)
    tokens = {split: token_count(stages[-1], split) for split in ("train", "validation")}
    return (
        f"{kept[0]:,} documents, {megabytes(kept[1])} of text, {tokens['train']:,} tokens to train on and "
        f"{tokens['validation']:,} held out. That is {percent(kept, seen)} of {seen[0]:,} records "
        f"({megabytes(seen[1])}), after the preset `{config.pipeline.name}` of llama-data. `report.html` shows "
        "examples and the distribution of every score, `stats.json` has all numbers and settings.\n"
        + _departures(config)
    )


def _departures(config: DataPipelineConfig) -> str:
    if not config.pipeline.departures:
        return ""
    lines = "\n".join(f"- {departure}" for departure in config.pipeline.departures)
    return f"\nWhere `{config.pipeline.name}` departs from its paper:\n\n{lines}\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    right = ["---"] + ["---:"] * (len(head) - 1)
    lines = [head, right, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _sources(read: StageStatistics, shards: StageStatistics) -> str:
    seen, kept = by_source(read.seen), by_source(shards.kept)
    rows = []
    for source in sorted(seen, key=lambda source: -seen[source][1]):
        left = kept.get(source, [0, 0])
        tokens = sum(shards.tokens.get(source, {}).values())
        rows.append([source_label(source), f"{seen[source][0]:,}", f"{left[0]:,}", megabytes(left[1]), f"{tokens:,}"])
    return _table(["source", "records", "kept", "text", "tokens"], rows)


def _languages(shards: StageStatistics) -> str:
    rows = sorted(by_key(shards.kept).items(), key=lambda item: -item[1][1])
    return _table(["language", "documents", "text"], [[name, f"{n:,}", megabytes(size)] for name, (n, size) in rows])


def _licenses(shards: StageStatistics) -> str:
    rows = sorted(shards.licenses.items(), key=lambda item: -item[1][1])
    table = _table(["license", "documents", "text"], [[name, f"{n:,}", megabytes(size)] for name, (n, size) in rows])
    opted_out = shards.noted.get(OPT_OUT, 0)
    told = f"\n{opted_out:,} documents state an opt-out, such as a robots rule: `opt_out` in the provenance sidecars.\n"
    return "As the records state them; nothing was checked.\n\n" + table + told * (opted_out > 0)


def _stages(config: DataPipelineConfig, filters: list[StageStatistics]) -> str:
    blocks = []
    for stage in filters:
        seen, kept = total(stage.seen), total(stage.kept)
        gone = f"{percent(seen[0] - kept[0], seen[0])} of documents removed" if seen[0] else "saw nothing"
        lines = [f"### {stage.stage}\n", f"{seen[0]:,} documents in, {kept[0]:,} kept, {gone}.\n"]
        known, reasons = STAGES.get(stage.stage), stage.reasons()
        if known:
            for rule in known.rules(getattr(config.pipeline, stage.stage)):
                reasons.setdefault(f"{stage.stage}.{rule.reason}", [0, 0])
        limits = _thresholds(config, stage.stage)
        rows = [
            [
                f"`{reason.removeprefix(stage.stage + '.')}`",
                limits.get(reason, ""),
                f"{tally[0]:,}",
                percent(tally[0], seen[0]),
            ]
            for reason, tally in reasons.items()
        ]
        if rows:
            lines.append(_table(["dropped for", "kept where", "documents", "of those in"], rows))
        if stage.edits:
            lines.append(f"Edits: {_counts(stage, ' × ')}.\n")
        if stage.noted:
            noted = (f"{count:,} × {name.removeprefix(stage.stage + '.')}" for name, count in stage.noted.items())
            lines.append(f"Noted, no loss: {', '.join(noted)}.\n")
        settings = _settings(config, stage.stage)
        if settings:
            lines.append(f"Settings: {settings}.\n")
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def _thresholds(config: DataPipelineConfig, name: str) -> dict[str, str]:
    known = STAGES.get(name)
    if not known:
        return {}
    told = {}
    for rule in known.rules(getattr(config.pipeline, name)):
        limits = (("≥", rule.minimum), ("≤", rule.maximum))
        told[f"{name}.{rule.reason}"] = ", ".join(
            f"{rule.score} {sign} {limit:g}" for sign, limit in limits if isfinite(limit)
        )
    return told


def _settings(config: DataPipelineConfig, name: str) -> str:
    if not hasattr(config.pipeline, name):
        return ""
    return ", ".join(f"`{key}={value}`" for key, value in flatten(getattr(config.pipeline, name)).items())


def _counts(stage: StageStatistics, between: str) -> str:
    return ", ".join(f"{count:,}{between}{name.removeprefix(stage.stage + '.')}" for name, count in stage.edits.items())


def _statement(config: DataPipelineConfig, filters: list[StageStatistics]) -> str:
    personal = [stage for stage in filters if stage.stage in _PERSONAL]
    unsafe = [stage for stage in filters if _UNSAFE in stage.stage]
    lines = []
    for stage in personal:
        dropped = total(stage.seen)[0] - total(stage.kept)[0]
        lines.append(
            f"The stage `{stage.stage}` looked for personal data by patterns: it replaced "
            f"{_counts(stage, ' ') or 'nothing'}, and "
            f"dropped {dropped:,} documents. Patterns miss names, addresses and unusual spellings."
        )
    if not personal:
        lines.append("No stage looked for personal data: expect names, addresses and numbers of people in the text.")
    for stage in unsafe:
        dropped = total(stage.seen)[0] - total(stage.kept)[0]
        lines.append(f"The stage `{stage.stage}` dropped {dropped:,} documents as not safe for work.")
    if not unsafe:
        lines.append("No stage looked for content that is not safe for work.")
    return "\n\n".join(lines) + "\n"


def _limits(config: DataPipelineConfig, stages: list[StageStatistics]) -> str:
    unknown = by_key(stages[-1].kept).get(UNKNOWN_LANGUAGE, [0, 0])
    lines = [f"- The language of {unknown[0]:,} of {total(stages[-1].kept)[0]:,} documents is unknown."]
    bad = sum(tally[0] for tally in stages[0].reasons().values())
    lines.append(f"- {bad:,} records could not be read; `report.html` says where they are.")
    for stage in stages[:-1]:
        for documents, rules in together(stage.abstained):
            named = ", ".join(f"`{rule}`" for rule in rules)
            lines.append(f"- {documents:,} documents could not be judged, and passed, by {named}.")
    deduplicated = [name for name in config.pipeline.stages if not isinstance(STAGES[name], LocalStage)]
    told = ", ".join(f"`{name}`" for name in deduplicated) or "none"
    lines.append(f"- Stages that compare documents: {told}. Copies that these do not find are still there.")
    if not any("decontaminat" in name for name in config.pipeline.stages):
        lines.append("- Nothing was checked against benchmarks: their questions may be in the text.")
    return "\n".join(lines) + "\n"
