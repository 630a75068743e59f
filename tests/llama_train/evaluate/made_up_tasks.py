"""Tasks of every kind and a tiny random Llama that answers them, and what transformers makes of both."""

import sys

import pytest
import torch

from llama_train.evaluate.__main__ import main

TEXT = "The miller's daughter counted 17 lanterns, and then the river took them all. Where did it go? Größe 日本 " * 20

EXAMPLES = {
    "choice": [
        {"query": "The river took", "choices": ["them all", "17 lanterns and more", "it"], "gold": 0},
        {"query": "Where did ", "choices": ["it go?", "the river"], "gold": 1},
        {"query": "The miller's daughter " * 12, "choices": ["counted", "took"], "gold": 0},  # longer than the context
    ],
    "schema": [
        {"context_options": ["The miller", "The river"], "continuation": "took them all.", "gold": 1},
        {"context_options": ["17", "all of them", "it"], "continuation": "lanterns", "gold": 0},
    ],
    "language": [
        {"context": "The river took", "continuation": "them all."},
        {"context": "", "continuation": "The river"},
    ],
    "answers": [
        {"context": "Where did the river go?", "answer": "nowhere", "aliases": ["all"]},
        {"context": "Who counted?", "answer": "the daughter"},
    ],
}


@torch.no_grad()
def log_probabilities(theirs: tuple, ids: list[int]) -> list[float]:
    """Of every token but the first, by transformers in float64, without batch or padding."""
    logits = theirs[0](torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    return [float(row[token]) for row, token in zip(logits, ids[1:], strict=True)]


def likelihood_by_hand(theirs: tuple, context: str, continuation: str) -> float:
    ids = theirs[1](context + continuation)["input_ids"]
    before = len(theirs[1](context.rstrip())["input_ids"])
    values = log_probabilities(theirs, ids[-49:])
    return sum(values[-(len(ids) - before) :])


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["llama-evaluate", *arguments])
    return main()
