"""What nvidia-smi says of this machine's GPUs."""

import subprocess


def gpu_facts(fields: str) -> list[list[str]]:
    """Return the values of `fields` (nvidia-smi --help-query-gpu) for each GPU; nothing without nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = answer.stdout.splitlines() if answer.returncode == 0 else []
    return [[cell.strip() for cell in line.split(",")] for line in lines]
