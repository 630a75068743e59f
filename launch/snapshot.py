"""What a run was started with, kept beside it: code, settings, environment; never a secret."""

import datetime
import importlib.metadata
import os
import re
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from llama_foundation import compose
from llama_foundation.errors import ConfigError
from llama_foundation.files import publish_json, publish_text
from llama_train.config import TrainConfig

ENVIRONMENT = re.compile(
    r"(CUDA|NCCL|TORCH|GLOO|OMP|MKL|SLURM|UCX|FI|NVIDIA)_[A-Z0-9_]+|PATH|LD_LIBRARY_PATH|PYTHONPATH|VIRTUAL_ENV"
    r"|CONDA_PREFIX|LOADEDMODULES|HOSTNAME|USER|LANG"
)
"""The variables that are kept. A list of what may be kept, because nobody knows all the names of secrets."""
SECRET = re.compile(r"(?i)(key|token|secret|passw|credential|auth)")
PACKAGES = ("configs", "data_pipeline", "launch", "llama_foundation", "llama_train", "slurm")
"""What of a checkout is run."""
MOST_CODE_BYTES = 64 << 20
_SHORTEST_SECRET = 8  # characters; shorter values would hide half of every text


def secrets(environment: Mapping[str, str]) -> list[str]:
    """Return the values of variables whose names speak of secrets, longest first."""
    values = {value for name, value in environment.items() if SECRET.search(name) and len(value) >= _SHORTEST_SECRET}
    return sorted((value for value in values if not value.startswith("/")), key=len, reverse=True)


def hide(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return `text` with the values of secret variables replaced."""
    for value in secrets(environment):
        text = text.replace(value, "[hidden]")
    return text


def refuse_secrets(arguments: list[str], environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a secret on the command line, which would be in the configuration, in the script and in `ps`.

    Raises:
        ConfigError: an argument holds the value of a secret variable.
    """
    for argument in arguments:
        if hide(argument, environment) != argument:
            raise ConfigError(
                f"{argument.partition('=')[0]}: its value is a secret of the environment; settings are written into "
                "the run directory. Leave the secret in the environment"
            )


def new_directory(run: Path) -> Path:
    """Return RUN/launch/TIME, where a start of `run` is kept."""
    return run / "launch" / datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def copy_code(checkout: Path, target: Path, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Copy the packages of a checkout as they are now, also what is not committed, but not what git ignores.

    Returns:
        `target`; None where there is no checkout: an installed wheel changes only when somebody installs another.

    Raises:
        ConfigError: they have more than `MOST_CODE_BYTES`, or a file holds a secret of the environment.
    """
    listed = _git(checkout, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PACKAGES)
    paths = [checkout / name for name in sorted(set(listed.split("\0"))) if name and (checkout / name).is_file()]
    if not paths:
        return None
    sizes = {path: path.stat().st_size for path in paths}
    if sum(sizes.values()) > MOST_CODE_BYTES:
        largest = max(paths, key=sizes.__getitem__)
        raise ConfigError(
            f"{checkout}: the code to copy has {sum(sizes.values()) >> 20} MiB, more than {MOST_CODE_BYTES >> 20}; "
            f"move what is no code elsewhere (the largest is {largest}), or set cluster.slurm.copy_code=false"
        )
    hidden = [value.encode() for value in secrets(environment)]
    for path in paths:
        content = path.read_bytes()
        if any(value in content for value in hidden):
            raise ConfigError(
                f"{path} holds the value of a secret of the environment, and would be copied into the run directory; "
                "take it out"
            )
        copy = target / path.relative_to(checkout)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
    return target


def snapshot(directory: Path, train: TrainConfig, script: str, code: Path) -> None:
    """Write what a start of a run consists of into `directory`.

    Args:
        script: what was or will be submitted.
        code: a directory in the checkout whose revision is asked; an installed wheel has none, and its version counts.
    """
    publish_text(directory / "train.sbatch", script)
    publish_text(directory / "config.yaml", compose.dump(train))
    publish_json(directory / "environment.json", kept_environment(os.environ))
    installed = sorted({f"{each.metadata['Name']}=={each.version}" for each in importlib.metadata.distributions()})
    publish_text(directory / "packages.txt", "\n".join(installed) + "\n")
    revision = _git(code, "rev-parse", "HEAD").strip()
    changes = _git(code, "diff", "HEAD") if revision else ""
    untracked = _git(code, "ls-files", "--others", "--exclude-standard").split("\n")[:-1] if revision else []
    publish_text(directory / "changes.diff", hide(changes))
    about = {
        "revision": revision or None,
        "changed": bool(changes),
        "untracked": untracked,
        "code": str(code),
        "submitted_from": socket.gethostname(),
        "directory": str(Path.cwd()),
    }
    publish_json(directory / "code.json", about)


def kept_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that explain how a run behaves, without anything that looks like a secret."""
    names = (name for name in sorted(environment) if ENVIRONMENT.fullmatch(name) and not SECRET.search(name))
    return {name: hide(environment[name], environment) for name in names}


def _git(directory: Path, *arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, errors="replace", timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""
