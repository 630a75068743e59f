"""Checks of single values that name the setting."""

from typing import Any

from llama_foundation.errors import ConfigError


def at_least(name: str, value: Any, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name}={value} must be at least {least}")


def in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} must be between {low} and {high}")
