"""Whether a batch can be shared out."""

from llama_foundation.errors import ConfigError


def check_divides(setting: str, batch_size: int, data_world: int, micro_batch_size: int) -> None:
    """Check that a batch divides into micro-batches of all ranks.

    Raises:
        ConfigError: naming the setting, the layout, and the values that would do.
    """
    per_pass = data_world * micro_batch_size
    if batch_size % per_pass == 0:
        return
    below, above = batch_size // per_pass * per_pass, -(-batch_size // per_pass) * per_pass
    sizes = f"{setting}={below} or {above}" if below else f"{setting}={above}"
    message = (
        f"{setting}={batch_size} does not divide into micro-batches of layout.micro_batch_size={micro_batch_size} on "
        f"{data_world} data-parallel ranks; use {sizes}"
    )
    if batch_size % data_world == 0:
        share = batch_size // data_world
        fitting = [str(size) for size in range(1, min(share, 64) + 1) if share % size == 0]
        message += f", or layout.micro_batch_size={', '.join(fitting)}"
    raise ConfigError(message)
