"""Loss on held-out documents: always the same windows, in the same order."""

from data_pipeline.shards.reader import ShardRoot
from llama_train.config import TrainConfig
from llama_train.data.batches import validation_micro_batches
from llama_train.engine.engine import Engine
from llama_train.parallel.layout import Layout


def validate(engine: Engine, config: TrainConfig, shards: ShardRoot, layout: Layout) -> float:
    """Return the mean loss per token over `validation.batches` batches of the validation shards.

    Raises:
        DataError: the validation shards hold fewer windows than asked for.
    """
    loss, tokens = 0.0, 0
    for index in range(config.validation.batches):
        micro_batches = validation_micro_batches(
            shards, config.data, index, layout.data_rank, layout.data_world, layout.micro_batch_size
        )
        loss_sum, count = engine.evaluate(micro_batches)
        loss, tokens = loss + loss_sum, tokens + count
    return loss / max(tokens, 1)
