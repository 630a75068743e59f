"""One training step of our model against transformers' LlamaForCausalLM, and the trainer against a bare loop.

    python -m benchmarks.step
    python -m benchmarks.step --compile
    python -m benchmarks.step --trainer

Each pair runs A B A B ... in this one process on the same tokens; a figure is the median over the rounds, a ratio the
median of the rounds' ratios. Both models train with torch's fused AdamW and clip gradients to norm 1.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import transformers

from llama_foundation import compose
from llama_train.clock import StepClock
from llama_train.config import ModelConfig, TrainConfig
from llama_train.data.batches import MicroBatch
from llama_train.data.order import TokenOrder
from llama_train.distributed import distributed
from llama_train.engine.build import build_engine
from llama_train.model.initialize import initialize
from llama_train.model.llama import Llama
from llama_train.model.names import canonical_parameters
from llama_train.observe.observers import Observers
from llama_train.observe.record import Recorder
from llama_train.optimizer.adamw import build_adamw
from llama_train.optimizer.schedule import learning_rate
from llama_train.parallel.resolve import resolve_layout
from llama_train.prove.harness import make_shards
from llama_train.run import Run

Step = Callable[[], float]


def alternate(steps: dict[str, Step], rounds: int, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Run the contestants in turn, `repeats` steps each; return (CPU seconds, wall seconds) of a step per round."""
    for step in steps.values():
        step()
        step()
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(repeats):
                step()
            figures[name].append(((time.process_time() - cpu) / repeats, (time.perf_counter() - wall) / repeats))
    return figures


def show(figures: dict[str, list[tuple[float, float]]]) -> None:
    """Print each contestant's step and how many of ours fit into one of theirs."""
    ours = next(iter(figures.values()))
    print(f"{'':36} {'CPU ms':>9} {'wall ms':>9} {'CPU ratio to ours':>18}")
    for name, rounds in figures.items():
        cpu, wall = (statistics.median(one[column] for one in rounds) for column in (0, 1))
        ratio = statistics.median(theirs[0] / mine[0] for theirs, mine in zip(rounds, ours, strict=True))
        print(f"{name:36} {cpu * 1e3:9.1f} {wall * 1e3:9.1f} {ratio:18.3f}")


def our_step(config: TrainConfig, batches: list[MicroBatch], compiled: bool, loss_chunk: int) -> Step:
    """A bare loop over our model: forward, backward, clip, AdamW."""
    model = Llama(config.model)
    initialize(model, config.model, config.seed)
    model.loss_chunk = loss_chunk
    if compiled:
        for block in model.blocks():
            block.compile()
    optimizer = build_adamw(canonical_parameters(model), config.optimizer)
    parameters = list(model.parameters())
    position = 0

    def step() -> float:
        nonlocal position
        batch = batches[position % len(batches)]
        position += 1
        loss_sum, count = model(batch.tokens, batch.labels, batch.document_ids, batch.positions)
        loss = loss_sum / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def their_step(config: ModelConfig, tokens: torch.Tensor, compiled: bool) -> Step:
    """The same for transformers' model, with its SDPA attention and its own loss, compiled as a whole."""
    settings = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.context,
        rms_norm_eps=config.norm_epsilon,
        tie_word_embeddings=config.tied_embeddings,
        attn_implementation="sdpa",
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(settings)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if compiled else model

    def step() -> float:
        loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def compare_models(config: TrainConfig, rows: int, compiled: bool, loss_chunk: int, rounds: int, repeats: int) -> None:
    """Our model, each row one document, against transformers' on the same tokens."""
    generator = torch.Generator().manual_seed(0)
    shape = (rows, config.data.sequence_length)
    tokens = torch.randint(config.model.vocab_size, shape, generator=generator)
    labels = tokens.roll(-1, 1)
    labels[:, -1] = -100
    batch = MicroBatch(tokens, labels, None, torch.arange(shape[1]).expand(shape))
    steps = {"ours": our_step(config, [batch], compiled, loss_chunk)}
    if compiled:
        steps = {"ours, blocks compiled": steps["ours"]}
        steps["transformers, compiled"] = their_step(config.model, tokens, compiled=True)
    steps["transformers, eager"] = their_step(config.model, tokens, compiled=False)
    show(alternate(steps, rounds, repeats))


def compare_trainer(config: TrainConfig, rounds: int, repeats: int) -> None:
    """The trainer's loop (order, engine, record, metrics file) against a bare loop over the same model and tokens."""
    with distributed("cpu", dist.HashStore(), 60) as world:
        layout = resolve_layout(config, 1)
        run = Run(config, world)
        order = TokenOrder(config.data, config.steps, config.seed, run.amendments, run.shards)
        engine = build_engine(config, layout, world.device)
        batches = [order.local_micro_batches(step, 0, 1, layout.micro_batch_size)[0] for step in range(8)]
        with Observers(config, run.directory) as observe:
            clock, recorder = StepClock(lambda step, phase: None), Recorder(config, world, 1)

            def trainer() -> float:
                step = run.step
                with clock.phase(step, "data"):
                    micro_batches = order.local_micro_batches(step, 0, 1, layout.micro_batch_size)
                with clock.phase(step, "compute"):
                    rate = learning_rate(step, config.optimizer.learning_rate, config.schedule, config.steps)
                    result = engine.step(micro_batches, rate)
                run.step_done(result)
                record = recorder.record(run.step, run.tokens, order.sequence_length(step), result, rate, clock.take())
                observe(record)
                return result.loss

            bare = our_step(config, batches, config.engine.compile, config.engine.loss_chunk)
            show(alternate({"trainer": trainer, "bare loop": bare}, rounds, repeats))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="3m", help="of configs/model/")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256, help="of a row")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=2, help="steps in a round")
    parser.add_argument("--loss-chunk", type=int, default=2048)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--trainer", action="store_true", help="the trainer against a bare loop instead")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="benchmark-step-") as directory:
        config = compose.compose(
            "train",
            TrainConfig,
            [
                f"model={options.model}",
                f"data.shards={directory}/shards",
                f"data.sequence_length={options.tokens}",
                f"data.batch_size={options.rows}",
                f"layout.micro_batch_size={options.rows}",
                f"engine.compile={options.compile}",
                f"engine.loss_chunk={options.loss_chunk}",
                "optimizer.learning_rate=1e-4",
                "steps=1000",
                "logging.console=none",
                "logging.report=false",
                f"output={directory}",
            ],
        )
        print(
            f"{options.model}, {options.rows} × {options.tokens} tokens, float32, {torch.get_num_threads()} thread(s), "
            f"torch {torch.__version__}, transformers {transformers.__version__}, {options.rounds} rounds of "
            f"{options.repeats} steps"
        )
        if options.trainer:
            make_shards(Path(directory) / "shards", config.model.vocab_size, 400_000)
            compare_trainer(config, options.rounds, options.repeats)
        else:
            compare_models(config, options.rows, options.compile, options.loss_chunk, options.rounds, options.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
