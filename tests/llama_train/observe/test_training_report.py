import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from made_up_steps import step_record

from llama_foundation.errors import DataError, RunError
from llama_train.observe.charts import BINS, downsample, short, smooth
from llama_train.observe.metrics import Event, MetricsFile, Validation
from llama_train.observe.report import write_report


@pytest.fixture
def run_directory(tmp_path):
    """A run of 60 steps, resumed after step 30, with a validation and an event."""
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        for step in range(1, 41):
            file.append(step_record(step, loss=100.0 if step > 30 else 9.0 - step / 10))
        file.append(Event(40, 1, "SIGTERM & <b>stop</b>"))
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        for step in range(31, 61):
            file.append(step_record(step, 2, loss=9.0 - step / 10))
        file.append(Validation(60, 2, 3.25))
    (tmp_path / "config.yaml").write_text("name: small <script>\nsteps: 80\nmodel:\n  name: llama_tiny\n")
    return tmp_path


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(run_directory):
    text = write_report(run_directory).read_text()
    page = _Page(text)
    assert not {"script", "link", "img", "iframe", "object", "b"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "srcset") or name.startswith("on")]
    links = [value for name, value in page.attributes if name.endswith("href")]
    assert all(link.startswith("#") for link in links)
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_the_page_says_what_the_metrics_say(run_directory):
    (run_directory / "summary.json").write_text(json.dumps({"steps": 60, "checkpoint": "runs/x/checkpoints"}))
    text = write_report(run_directory).read_text()
    assert "small &lt;script&gt;" in text
    assert "at step 60 of 80" in text
    for title, value in (("Loss", "3.000"), ("Validation loss", "3.250"), ("Steps", "60"), ("Tokens", "60k")):
        assert f'<dt>{title}</dt><dd class="value">{value}</dd>' in text
    assert '<dt>Time in steps</dt><dd class="value">0:00:30</dd>' in text
    assert "SIGTERM &amp; &lt;b&gt;stop&lt;/b&gt;" in text
    assert "runs/x/checkpoints" in text
    assert "steps: 80" in text
    assert "<dt>MFU</dt>" not in text
    assert "compute 80.0 %" in text


def test_mfu_is_shown_with_the_name_of_its_formula(tmp_path):
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        file.append(step_record(1, mfu=0.41, mfu_formula="PaLM 6N + 12LHQT"))
    text = write_report(tmp_path).read_text()
    assert '<dt>MFU</dt><dd class="value">41.0%</dd>' in text
    assert "FLOPs by PaLM 6N + 12LHQT" in text


def test_curves_are_svg_in_the_colours_of_the_page_and_mark_the_resumed_step(run_directory):
    text = write_report(run_directory).read_text()
    charts = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    assert len(charts) == 6
    for chart in charts:
        ElementTree.fromstring(chart.replace("xlink:", ""))  # well-formed
        assert not re.search(r"#0[1-7]0[1-7]0[1-7]", chart)
        assert "stroke-dasharray" in chart
    assert "var(--series-1)" in charts[0]
    # the losses of 100 that the first attempt saw after step 30 are undone, so no axis goes there
    assert ">100<" not in charts[0]
    assert "prefers-color-scheme: dark" in text


def test_a_long_run_gives_a_small_page_that_keeps_its_spike(tmp_path):
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        for step in range(1, 5_001):
            file.append(step_record(step, loss=50.0 if step == 3777 else 3.0 + step % 7 / 10))
    path = write_report(tmp_path)
    assert path.stat().st_size < 400_000
    assert ">40<" in re.findall(r"<svg.*?</svg>", path.read_text(), flags=re.S)[0]


def test_merged_points_are_the_mean_and_the_extremes_of_their_stretch():
    generator = np.random.default_rng(0)
    count = 12_345
    x, y = np.arange(1, count + 1), generator.normal(size=count)
    y[100] = np.nan
    curve = downsample(x, y)
    kept_x, kept_y = np.delete(x, 100), np.delete(y, 100)
    bounds = [i * len(kept_y) // BINS for i in range(BINS + 1)]
    for i in (0, 5, 400, BINS - 1):
        stretch = slice(bounds[i], bounds[i + 1])
        assert curve.x[i] == pytest.approx(kept_x[stretch].mean())
        assert curve.y[i] == pytest.approx(kept_y[stretch].mean())
        assert (curve.low[i], curve.high[i]) == (kept_y[stretch].min(), kept_y[stretch].max())
    short_curve = downsample(x[: 2 * BINS], y[: 2 * BINS])
    assert short_curve.low is None
    assert len(short_curve.y) == 2 * BINS - 1


def test_smoothing_is_the_mean_of_as_many_steps_on_both_sides():
    y = np.array([4.0, 1.0, 7.0, 2.0, 6.0])
    assert smooth(y, 1).tolist() == pytest.approx([4.0, 4.0, 10 / 3, 5.0, 6.0])
    assert smooth(y, 9).tolist() == pytest.approx([4.0, 4.0, 4.0, 5.0, 6.0])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0003, "3e-4"), (0.0024, "2.4e-3"), (0.25, "0.25"), (1500, "1.5k"), (2e7, "20M"), (1.5e13, "15T")],
)
def test_axis_numbers(value, text):
    assert short(value) == text


def test_a_run_without_steps_or_metrics_has_no_report(tmp_path):
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        write_report(tmp_path)
    MetricsFile(tmp_path / "metrics.jsonl").close()
    with pytest.raises(RunError, match="no step has finished"):
        write_report(tmp_path)
