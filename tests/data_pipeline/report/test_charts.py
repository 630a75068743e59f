import re

import pytest

from data_pipeline.report.charts import histogram


def bars(svg):
    """Return [(x, width, height, beyond the cut)]."""
    found = re.findall(
        r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="([\d.]+)" style="fill: var\(--(\w+)', svg
    )
    return [(float(x), float(width), float(height), colour == "lost") for x, width, height, colour in found]


def cut_places(svg):
    return [float(x) for x in re.findall(r'<line x1="([\d.]+)"[^>]*class="cut"', svg)]


@pytest.mark.parametrize(
    ("bins", "cuts"),
    [
        ({"0": 100, "0.1": 25, "0.29": 4, "0.3": 9, "1": 1}, {"maximum": 0.3}),
        ({"0": 3, "1": 5, "2": 8, "7": 1}, {"minimum": 2}),
        ({"3": 4, "49": 5, "50": 6, "120": 9, "15000": 2}, {"minimum": 50, "maximum": 1000}),
        ({"-0.5": 4, "-0.1": 5, "0.2": 6}, {"minimum": -0.2}),
        ({"2.9": 4, "3": 5, "9.9": 5, "10": 6}, {"minimum": 3, "maximum": 10}),
    ],
)
def test_bars_beyond_the_cut_have_the_colour_of_loss_and_the_others_have_not(bins, cuts):
    svg = histogram(bins, **cuts)
    places = cut_places(svg)
    assert len(places) == len(cuts)
    low = places[0] if "minimum" in cuts else -1
    high = places[-1] if "maximum" in cuts else 1e9
    assert bars(svg)
    for x, width, _, lost in bars(svg):
        assert lost == (x + width / 2 < low or x + width / 2 > high)
    if "minimum" in cuts:
        assert any(lost for *_, lost in bars(svg))


def test_heights_are_square_roots():
    svg = histogram({"0": 100, "0.5": 25})
    heights = [height for *_, height, _ in bars(svg)]
    assert heights == pytest.approx([96, 48], abs=0.1)


@pytest.mark.parametrize("bins", [{}, {"0": 1}, {"5": 3}, {"0": 7, "1": 2}, {"1e+18": 1, "0": 2}])
def test_a_score_with_few_values_is_drawn_too(bins):
    svg = histogram(bins, maximum=0.5)
    assert svg.count("<svg") == bool(bins)
    assert "nan" not in svg
