"""One training run, top to bottom.

`train` is the table of contents of this package: who we are, which tokens come next, what is computed, where we
stopped last time, and then the loop.
"""

from functools import partial
from pathlib import Path

import torch.distributed as dist

from llama_train.clock import StartClock, StepClock
from llama_train.cluster import prepare
from llama_train.config import OnSpike, TrainConfig
from llama_train.data.order import TokenOrder
from llama_train.distributed import distributed
from llama_train.engine.build import build_engine, describe_engine
from llama_train.engine.engine import RefusedUpdate, StepResult
from llama_train.observe.inside import Inside
from llama_train.observe.observers import Observers
from llama_train.observe.record import Recorder
from llama_train.optimizer.schedule import learning_rate
from llama_train.parallel.layout import make_request_group
from llama_train.parallel.resolve import resolve_layout
from llama_train.run import Run
from llama_train.survive.anomalies import describe_refused, jumped_over
from llama_train.survive.faults import Faults
from llama_train.survive.garbage import GarbageCollection
from llama_train.survive.replay import describe_replay, replay
from llama_train.survive.replicas import compare_replicas
from llama_train.survive.signals import StopRequest
from llama_train.survive.slow_ranks import SlowRanks
from llama_train.survive.watchdog import Watchdog
from llama_train.validation import run_tasks, validate


def train(config: TrainConfig, store: dist.Store) -> int:
    """Start or resume the run that `config` describes; train until its last step, or until asked to stop.

    Returns:
        The exit status: 0, also when asked to stop; summary.json says whether the run is finished.

    Raises:
        UserError: naming what is wrong; the last checkpoint stays good.
    """
    directory = Path(config.output) / config.name
    start = StartClock()
    start.done("programs and settings")
    prepared = prepare(config.cluster)  # before the process groups: they read the environment once
    with (
        distributed(config.cluster.device, store, config.engine.collective_seconds) as world,
        StopRequest(
            starting=True
        ) as stop,  # outside of the watchdog: a launcher's SIGTERM must not cut short who died and why
        Watchdog(
            world.rank,
            world.size,
            world.store,
            config.engine.timeout_seconds,
            world.host,
            directory,
            config.survive.deadlines.by_phase(),
            nccl=world.device.type == "cuda",
        ) as watchdog,
    ):
        start.follow(watchdog.starting)
        start.done("process groups")
        layout = resolve_layout(config, world.size, world.rank)
        run = Run(config, world)
        order = TokenOrder(config.data, config.steps, config.seed, run.amendments, run.shards)
        run.check(order)
        start.done("data and newest checkpoint")
        engine = build_engine(config, layout, world.device)
        start.done("model")
        run.load(engine)
        start.done("loading")
        faults = Faults(config.fault, world.rank, world.size, directory)
        requests = make_request_group(layout, config.engine.collective_seconds)
        with (
            Observers(config, directory, world.main, world.size, run.step, None, run.logger_ids) as observe,
            Inside(config, world, directory, engine, observe) as inside,
            GarbageCollection(config.engine.garbage_collection_every, world.device.type == "cpu") as garbage,
            watchdog.explaining(),  # inside of the observers, so that they say who is gone
        ):
            for line in [*prepared, *describe_engine(config, world.size)]:
                observe.phase(line)
            if faults.warning is not None:
                observe.event(run.step, faults.warning)
            run.announce(observe, layout, order)
            clock = StepClock(watchdog.beat)
            start.done("observers")
            observe.begin(start)
            stop.started()
            recorder = Recorder(config, world, observe.attempt)
            slow_ranks = SlowRanks(config.survive.slow_rank_every, config.survive.slow_rank_factor, world)
            while run.step < run.last_step and not stop.agreed(world.control):
                step = run.step
                slow_ranks.begin()
                inside.begin(step + 1)
                with clock.phase(step, "data"):
                    micro_batches = order.local_micro_batches(
                        step, layout.data_rank, layout.data_world, layout.micro_batch_size
                    )
                with clock.phase(step, "compute"):
                    faults.begin(step + 1, engine)
                    rate = learning_rate(step, config.optimizer.learning_rate, config.schedule, config.steps)
                    looks = faults.looks(step + 1, inside.looks(step + 1))
                    refused = again = None
                    if step + 1 in config.survive.replay_steps:
                        again = replay(engine, micro_batches, rate)
                    slow_ranks.computing()
                    try:
                        result = engine.step(micro_batches, rate, **looks, most_loss=run.anomalies.most_loss())
                    except RefusedUpdate as error:
                        refused, result = error, StepResult(error.loss, error.grad_norm, tokens=0, applied=False)
                        again = replay(engine, micro_batches, rate)
                with clock.phase(step, "inside"):
                    inside.end(step + 1)
                    if (slow := slow_ranks.step_done(step + 1)) is not None:
                        observe.event(step + 1, slow)
                if again is not None:
                    observe.event(step + 1, describe_replay((result.loss, result.grad_norm), again))
                if refused is not None:
                    todo = run.anomalies.refused(refused)
                    if todo is None:
                        documents = order.documents(step)
                        latest = run.store.latest()
                        raise describe_refused(step + 1, refused, run.anomalies, documents, latest, again)
                    observe.event(
                        step + 1, f"update refused: loss {refused.loss:.4f}, grad_norm {refused.grad_norm:.4f}"
                    )
                    if todo is OnSpike.rewind:
                        before, amendment = order, run.rewind(engine)
                        order = TokenOrder(config.data, config.steps, config.seed, run.amendments, run.shards)
                        observe.rewound(step + 1, amendment.at_step)
                        recorder = Recorder(config, world, observe.attempt)
                        jumped_over(directory, world.main, before, range(run.step, step + 1), observe.event)
                        continue
                    jumped_over(directory, world.main, order, range(step, step + 1), observe.event)
                elif (spike := run.anomalies.made(result.loss)) is not None:
                    observe.event(step + 1, spike)
                run.step_done(result)
                garbage.step_done(run.step)
                # The record is on disk before the checkpoint that makes the step permanent.
                observe(recorder.record(run.step, run.tokens, order.sequence_length(step), result, rate, clock.take()))
                if run.replicas_due():
                    with clock.phase(step, "inside"):
                        compare_replicas(run.step, engine.chunks(), world.control)
                if run.validation_due():
                    with clock.phase(step, "validation"):
                        measured = validate(engine, config, run.shards, layout)
                        observe.validation(run.step, measured.loss)
                        if len(measured.by_source) > 1:
                            observe.values(run.step, "validation/loss", measured.by_source)
                if run.tasks_due():
                    with clock.phase(step, "validation"):
                        tell = partial(observe.event, run.step)
                        observe.values(run.step, "tasks", run_tasks(engine, config, run.shards, requests, tell))
                if run.fast_checkpoint_due():
                    with clock.phase(step, "checkpoint"), faults.saving(run.step, run.fast):
                        run.save(engine, order, observe.logger_ids(), fast=True)
                if run.checkpoint_due():
                    with clock.phase(step, "checkpoint"), faults.saving(run.step, run.store):
                        run.save(engine, order, observe.logger_ids())
            with clock.phase(run.step, "checkpoint"):
                run.save(engine, order, observe.logger_ids())
                for tier in run.stores:
                    tier.wait()
            observe.checkpoint_took(clock.take().get("checkpoint", 0.0))
            run.finish(observe, stop.requested)
    return 0
