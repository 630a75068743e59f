from dataclasses import dataclass
from pathlib import Path

from llama_train.config import SurviveConfig
from llama_train.engine.engine import RefusedUpdate
from llama_train.survive.anomalies import Anomalies, describe_refused


@dataclass
class Place:
    source: str
    file: str
    row: int


def test_the_step_ten_documents_and_the_last_checkpoint_are_named():
    documents = [Place("web", f"part-{number}.jsonl", 100 + number) for number in range(12)]
    latest = Path("runs/a/checkpoints/step-00000006")
    bad = RefusedUpdate(float("nan"), 1.5)
    error = describe_refused(7, bad, Anomalies(SurviveConfig()), documents, latest, (float("nan"), 1.5))
    assert error.exit_code == 4
    assert describe_refused(7, bad, Anomalies(SurviveConfig()), documents, latest, (2.5, 1.5)).exit_code == 3
    message = str(error)
    assert "step 7: loss=nan, grad_norm=1.5" in message
    assert "documents in its batch: 12; the first 10:" in message
    assert "web: part-9.jsonl, row 109" in message
    assert "part-10.jsonl" not in message
    assert "last good checkpoint: runs/a/checkpoints/step-00000006" in message


def test_without_a_checkpoint_that_is_said():
    message = str(
        describe_refused(
            1,
            RefusedUpdate(float("inf"), float("inf")),
            Anomalies(SurviveConfig()),
            [Place("web", "a.jsonl", 0)],
            None,
            (float("inf"), float("inf")),
        )
    )
    assert "documents in its batch: 1:\n  web: a.jsonl, row 0" in message
    assert "no checkpoint has been written yet" in message
