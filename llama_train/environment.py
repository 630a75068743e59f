"""What the launcher says of this process, read without importing torch."""

import os


def environment_rank() -> tuple[int, int]:
    """Return (rank, world size) as the launcher set them in the environment, (0, 1) without a launcher."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
