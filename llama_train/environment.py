"""What the launcher says of this process, read without importing torch."""

import os


def environment_rank() -> tuple[int, int]:
    """Return (rank, world size) as the launcher set them in the environment, (0, 1) without a launcher."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int | None:
    """Return how many processes the launcher started on this node, None if it did not say."""
    value = os.environ.get("LOCAL_WORLD_SIZE")
    return int(value) if value else None


def launcher_keeps_store() -> bool:
    """Whether the store in which the processes meet is torchrun's; otherwise rank 0 keeps it, and takes it along."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
