"""One text's way through a filter, for golden values."""

from dataclasses import dataclass

import numpy as np

from data_pipeline.filters.measure import KEEP, decide
from tests.data_pipeline.conftest import make_documents


@dataclass
class Judged:
    reason: str | None
    scores: dict[str, float]  # without those that abstain
    abstained: set[str]
    text: str | None  # None: not edited
    counts: dict[str, int]  # without zeros


def judge(module, settings, text, language="en") -> Judged:
    """Take a text through a filter, in the middle of a batch so that its neighbours would show."""
    texts = ["Neighbour one. Neighbour two.\n", text, "\nneighbour three"]
    documents = make_documents([{"text": each, "language": language} for each in texts])
    assert documents.texts.words().counts.sum() + documents.texts.lines.counts.sum()  # found before the selection
    alone = module.measure(documents.select(np.array([False, True, False])), settings)
    measurement = module.measure(documents, settings)
    scores = {name: values[1] for name, values in measurement.scores.items()}
    np.testing.assert_array_equal(list(scores.values()), [values[0] for values in alone.scores.values()])
    verdicts, reasons = decide(measurement, module.rules(settings), 3)
    edited = None if alone.texts is None else alone.texts[0].as_py()
    if measurement.texts is not None:
        assert measurement.texts[1].as_py() == (text if edited is None else edited)
    return Judged(
        None if verdicts[1] == KEEP else reasons[verdicts[1]],
        {name: value for name, value in scores.items() if not np.isnan(value)},
        {name for name, value in scores.items() if np.isnan(value)},
        edited,
        {name: count for name, count in alone.counts.items() if count},
    )
