"""One run on disk: where it is, what its checkpoints say, and whether it may go on.

A run directory holds config.yaml, metrics.jsonl, report.html, summary.json, amendments.json and checkpoints/. Only
rank 0 writes there, except for the per-rank files inside a checkpoint.
"""

import dataclasses
import re
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from omegaconf import OmegaConf

from data_pipeline.shards.reader import ShardRoot, open_root
from llama_foundation.errors import CheckpointError, DataError
from llama_foundation.files import publish_text
from llama_train.checkpoint.collective import broadcast_bytes, gather_everywhere
from llama_train.checkpoint.local import LocalCheckpoint, LocalTier
from llama_train.checkpoint.restore import Checkpoint, newest_good, restore
from llama_train.checkpoint.store import CheckpointStore
from llama_train.checkpoint.stored_chunk import DamagedError
from llama_train.config import TrainConfig
from llama_train.data.amendments import AMENDMENTS, Amendment, append_amendment, read_amendments
from llama_train.data.batches import check_validation
from llama_train.data.order import TokenOrder, check_vocabulary
from llama_train.distributed import World
from llama_train.engine.engine import Engine, StepResult
from llama_train.model.size import parameter_count
from llama_train.observe.observers import Observers
from llama_train.observe.summary import write_summary
from llama_train.parallel.layout import Layout
from llama_train.survive.anomalies import Anomalies
from llama_train.validation import load_tasks

FROZEN = ("seed", "model", "data", "optimizer", "schedule")
"""Settings that decide what a step computes: a run keeps them for life. `data.shards` may move; its content not."""


class Run:
    """The state of a run that is not weights: where it stands and what it has been through."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        self.config = config
        self.world = world
        self.directory = Path(config.output) / config.name
        self.shards: ShardRoot = open_root(Path(config.data.shards))
        self.store = CheckpointStore(
            self.directory / "checkpoints",
            group=world.background,
            keep_last=config.checkpoint.keep_last,
            keep_every=config.checkpoint.keep_every,
            asynchronous=config.checkpoint.asynchronous,
        )
        self.fast = self._fast_tier()
        self.passed_over: list[str] = []  # why checkpoints that are there were not used
        self.checkpoint = self._newest()
        self.amendments = read_amendments(self.directory)
        self.anomalies = Anomalies(config.survive)
        self.step = 0  # optimizer steps done
        self.tokens = 0  # valid tokens seen
        self.logger_ids: dict[str, str] = {}
        self._bubbles: list[float] = []  # of the steps of this process
        self._saved: int | None = None  # the newest step that needs no checkpoint any more

    @property
    def last_step(self) -> int:
        """The step after which this process ends."""
        return min(self.config.steps, self.config.stop_at_step or self.config.steps)

    def check(self, order: TokenOrder) -> None:
        """Refuse to go on with another model, other data, or a changed history.

        Raises:
            DataError: the shards do not fit the model.
            CheckpointError: what the checkpoint was made with differs; every differing setting is named.
        """
        state = self.checkpoint.state if self.checkpoint else {}
        check_vocabulary(self.shards, self.config.model.vocab_size, state.get("tokenizer"))
        check_validation(self.shards, self.config.data, self.config.validation.batches)
        if load_tasks(self.config.validation):
            from data_pipeline.tokenize import load_tokenizer  # late, as below: few starts need it

            load_tokenizer(self.shards.tokenizer_path)
        if self.checkpoint is None:
            return
        where = self.checkpoint.directory
        differing = list(_differences(_frozen(state["config"]), _frozen(to_container(self.config))))
        if differing:
            raise CheckpointError(
                f"{where} was made with other settings: {'; '.join(differing[:5])}. Put them back to resume, or start "
                f"a new run with name=... and checkpoint.init_from={where}"
            )
        if state["data_fingerprint"] != order.fingerprint:
            raise DataError(
                f"data.shards={self.config.data.shards} does not hold what {where} was trained on; "
                "point data.shards at the shards this run was started on"
            )
        known = tuple(Amendment(**amendment) for amendment in state["amendments"])
        if self.amendments[: len(known)] != known or any(
            a.at_step < state["step"] for a in self.amendments[len(known) :]
        ):
            raise CheckpointError(
                f"{self.directory / AMENDMENTS} changes steps that {where} has already done; "
                "amendments can only be appended, for later steps"
            )

    def load(self, engine: Engine) -> None:
        """Resume from the newest good checkpoint, else take the weights of `checkpoint.init_from`, else start.

        Raises:
            CheckpointError: there are checkpoints, and none is good; or one is of another model.
        """
        while self.checkpoint is not None:
            state = self.checkpoint.state
            damage = None
            try:
                found = self.checkpoint
                own = isinstance(found, LocalCheckpoint)
                engine.load_chunks(found.restore(engine.chunks()) if own else restore(found, engine.chunks()))
            except DamagedError as error:
                damage = str(error)
            damages = [damage for damage in gather_everywhere(damage, self.world.background) if damage is not None]
            if damages:
                self._pass_over(self.checkpoint, damages[0])
                continue
            engine.load_scalars(state["engine"])
            self.step, self.tokens, self.logger_ids = state["step"], state["tokens"], state["logger_ids"]
            self.anomalies.load(state["anomalies"])
            self._saved = self.step
            return
        if self.passed_over:
            raise CheckpointError(f"{self.directory}: no checkpoint is good: {'; '.join(self.passed_over)}")
        if self.config.checkpoint.init_from is not None:
            from llama_train.checkpoint.load import open_weights

            source = open_weights(Path(self.config.checkpoint.init_from), group=self.world.background)
            made_with = source.state.get("tokenizer") if isinstance(source, Checkpoint) else None
            check_vocabulary(self.shards, self.config.model.vocab_size, made_with)
            optimizer = self.config.checkpoint.init_optimizer
            scalars = source.state.get("engine") if isinstance(source, Checkpoint) else None
            if optimizer and scalars is None:
                raise CheckpointError(
                    f"checkpoint.init_optimizer=true, but checkpoint.init_from={source.directory} is no checkpoint "
                    "with optimizer state; llama-convert to=native keeps DeepSpeed's, else set "
                    "checkpoint.init_optimizer=false"
                )
            engine.load_chunks(restore(source, engine.chunks(optimizer=optimizer)))
            if optimizer:
                engine.load_scalars(scalars)

    def _newest(self, below: int | None = None) -> Checkpoint | LocalCheckpoint | None:
        """Open the newest good checkpoint of both tiers, and take down why newer ones are passed over."""
        best: Checkpoint | LocalCheckpoint | None = None
        for store in self.stores:
            if isinstance(store, LocalTier):
                found, passed_over = store.newest(below)
            else:
                found, passed_over = newest_good(store.directory, group=self.world.background, below=below)
            self.passed_over += [message for message in passed_over if message not in self.passed_over]
            if found is not None and (best is None or found.step > best.step):
                best = found
        if best is not None:
            for store in self.stores:
                store.damaged |= {step for step in store.steps() if step > best.step}
        return best

    def _pass_over(self, checkpoint: Checkpoint | LocalCheckpoint, why: str) -> None:
        """Go on with the checkpoint before a damaged one."""
        self.passed_over.append(why)
        for store in self.stores:
            if store.directory == checkpoint.directory.parent:
                store.damaged.add(checkpoint.step)
        self.checkpoint = self._newest(below=checkpoint.step)

    @property
    def stores(self) -> list[CheckpointStore | LocalTier]:
        """The tiers of checkpoints, the durable one first."""
        return [self.store] if self.fast is None else [self.store, self.fast]

    def _fast_tier(self) -> CheckpointStore | LocalTier | None:
        settings = self.config.checkpoint
        if settings.fast is None:
            return None
        # By the run's own id: a new run of the same name must not find the checkpoints of one that was deleted.
        path = self.directory / "id"
        mine = ""
        if self.world.main:
            if not path.exists():
                publish_text(path, uuid.uuid4().hex)
            mine = path.read_text("utf-8", errors="replace").strip()
            if not re.fullmatch("[0-9a-f]{32}", mine):
                raise CheckpointError(f"{path}: {mine[:80]!r} is no id of a run; remove the file to begin another one")
        run_id = broadcast_bytes(mine.encode(), self.world.background).decode()
        directory = Path(settings.fast) / f"{self.config.name}-{run_id}"
        if settings.fast_per_node:
            return LocalTier(directory, self.world.control, settings.fast_keep_last, settings.asynchronous)
        return CheckpointStore(
            directory,
            # of its own: both tiers may be written in the background at once
            group=dist.new_group(backend="gloo", timeout=timedelta(seconds=self.config.engine.collective_seconds)),
            keep_last=settings.fast_keep_last,
            asynchronous=settings.asynchronous,
        )

    def rewind(self, engine: Engine) -> Amendment:
        """Go back to the last good checkpoint and jump over the batches from there to the present step's.

        A process that dies before the amendment is on disk meets the same batch again, and rewinds again.

        Raises:
            CheckpointError: there is no good checkpoint to go back to.
        """
        for store in self.stores:
            store.wait()
        step = self.step
        self.checkpoint = self._newest(below=step + 1)
        if self.checkpoint is None:
            raise CheckpointError(f"{self.directory}: there is no checkpoint to rewind to from step {step + 1}")
        interventions = self.anomalies.interventions
        self.load(engine)
        amendment = Amendment(self.step, step - self.step + 1)
        if self.world.main:
            append_amendment(self.directory, amendment)
        broadcast_bytes(b"", self.world.background)  # nobody goes on before it is written
        self.amendments = (*self.amendments, amendment)
        self.anomalies.interventions = interventions
        self._saved = None  # a checkpoint of this step has to say so
        return amendment

    def save(self, engine: Engine, order: TokenOrder, logger_ids: dict[str, str], fast: bool = False) -> None:
        """Write the checkpoint of the present step to a tier, unless that was the last thing this run did."""
        if self.step == self._saved:
            return
        if not fast:
            self._saved = self.step
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "config": to_container(self.config),
            "model": dataclasses.asdict(self.config.model),
            "tokenizer": self.shards.tokenizer.fingerprint,
            "data_fingerprint": order.fingerprint,
            "amendments": [dataclasses.asdict(a) for a in self.amendments],
            "engine": engine.scalars(),
            "anomalies": self.anomalies.state(),
            "logger_ids": logger_ids,
        }
        tokenizer = self.shards.path / self.shards.tokenizer.file
        files = {f"tokenizer/{tokenizer.name}": tokenizer} if tokenizer.is_file() else {}
        store = self.fast if fast and self.fast is not None else self.store
        store.save(self.step, engine.chunks(), state, files)

    def announce(self, observe: Observers, layout: Layout, order: TokenOrder) -> None:
        """Say in a few lines what is about to happen."""
        for message in self.passed_over:
            observe.event(self.step, f"checkpoint passed over: {message}")
        parameters = parameter_count(self.config.model)
        observe.phase(
            f"{self.directory}: {self.config.model.name}, {parameters:,} parameters, {layout.describe()}, "
            f"{order.tokens_per_step(self.step):,} tokens a step"
        )
        if layout.pipeline > 1:
            from llama_train.parallel.bubble import ideal_bubble  # torch's schedules take a second to import

            count = order.batch_size(self.step) // (layout.data_world * layout.micro_batch_size)
            observe.phase(
                f"pipeline_schedule={layout.config.pipeline_schedule.name}, {count} micro-batches: a bubble of "
                f"{ideal_bubble(layout, count):.1%} if all stages took the same time"
            )
        if self.shards.tokenizer.vocabulary_size < self.config.model.vocab_size:
            observe.phase(
                f"the shards' tokenizer has {self.shards.tokenizer.vocabulary_size} tokens; the rest of "
                f"model.vocab_size={self.config.model.vocab_size} stays unused"
            )
        epochs = order.epochs(self.config.steps)
        observe.phase("epochs at the end: " + ", ".join(f"{source} {n:.2f}" for source, n in epochs.items()))

    def finish(self, observe: Observers, stopped_by: str | None) -> None:
        """Write summary.json and say how the process ends."""
        finished = self.step >= self.config.steps
        if not finished:
            why = f"asked to stop by {stopped_by}" if stopped_by else f"stop_at_step={self.config.stop_at_step}"
            observe.event(self.step, f"{why}; the same command goes on after step {self.step}")
        if self._bubbles:
            mean = sum(self._bubbles) / len(self._bubbles)
            observe.event(self.step, f"pipeline bubble: {mean:.1%} of the passes' time", {"pipeline_bubble": mean})
        if self.world.main and self.step > 0:
            write_summary(
                self.directory / "summary.json",
                self.directory / "metrics.jsonl",
                finished=finished,
                run=self.directory,
                shards=self.shards.path,
                checkpoint=self.store.latest(),
                report=self.directory / "report.html",
            )

    def step_done(self, result: StepResult) -> None:
        """Count a finished optimizer step, also one whose update was refused."""
        self.step += 1
        self.tokens += result.tokens
        if result.pipeline_bubble is not None:
            self._bubbles.append(result.pipeline_bubble)

    def fast_checkpoint_due(self) -> bool:
        every = self.config.checkpoint.fast_every
        return every > 0 and self.step % every == 0 and not self.checkpoint_due()

    def checkpoint_due(self) -> bool:
        every = self.config.checkpoint.every
        return every > 0 and self.step % every == 0

    def replicas_due(self) -> bool:
        """Whether copies are to be compared: at the interval, and before anything is written that keeps an error."""
        every = self.config.survive.compare_replicas_every
        return every > 0 and (self.step % every == 0 or self.checkpoint_due() or self.fast_checkpoint_due())

    def validation_due(self) -> bool:
        """Whether held-out documents are due: at the interval, and at the very end."""
        every = self.config.validation.every
        at_interval = every > 0 and self.step % every == 0
        return self.config.validation.batches > 0 and (at_interval or self.step == self.config.steps)

    def tasks_due(self) -> bool:
        """Whether tasks are due."""
        every = self.config.validation.tasks_every
        return every > 0 and self.step % every == 0


def to_container(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration as plain JSON values."""
    container = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return container


def _frozen(container: dict[str, Any]) -> dict[str, Any]:
    kept = {key: container[key] for key in FROZEN}
    kept["data"] = {key: value for key, value in kept["data"].items() if key != "shards"}
    kept["schedule"] = {**kept["schedule"], "total_steps": kept["schedule"]["total_steps"] or container["steps"]}
    return kept


def _differences(before: Any, now: Any, prefix: str = "") -> Any:
    """Yield "key: before -> now" for every leaf that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{prefix}{key}.")
    elif before != now:
        yield f"{prefix.rstrip('.')} was {before}, now {now}"
