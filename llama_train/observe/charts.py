"""Curves as SVG text that takes its colours from the page around it and stays small for runs of any length."""

import io
import logging
import re
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it announces its font cache on the first run

BINS = 800
"""A curve longer than twice this many points is drawn as the mean, the lowest and the highest value of this many
stretches, so that no spike disappears."""

_COLOURS = {
    "ink": "#010101",
    "muted": "#020202",
    "grid": "#030303",
    "series-1": "#040404",
    "series-2": "#050505",
    "series-3": "#060606",
    "series-4": "#070707",
    "series-5": "#080808",
    "series-6": "#090909",
    "series-7": "#0a0a0a",
    "series-8": "#0b0b0b",
}
"""Colours that stand for CSS variables of the page; they are exchanged in the finished SVG."""

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": _COLOURS["ink"],
    "axes.edgecolor": _COLOURS["grid"],
    "axes.labelcolor": _COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _COLOURS["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": _COLOURS["grid"],
    "ytick.color": _COLOURS["grid"],
    "xtick.labelcolor": _COLOURS["muted"],
    "ytick.labelcolor": _COLOURS["muted"],
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_joinstyle": "round",
    "legend.frameon": False,
    "legend.labelcolor": _COLOURS["muted"],
}


_LONG_NUMBER = re.compile(r"\d+\.\d{3,}")


@dataclass(frozen=True)
class Curve:
    """A curve as it is drawn: one point per stretch of steps; `low` and `high` are None where nothing was merged."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass
class Chart:
    """Axes of one chart; fill it with `curve`, `points`, `stack`, then take `svg`.

    Args:
        label: what it shows, for people who cannot see it.
        resumed_at: the first steps of later attempts, marked by vertical lines.
    """

    label: str
    width: float = 5.4  # inches at 72 points
    height: float = 2.5
    resumed_at: list[int] = field(default_factory=list)
    logarithmic: bool = False
    percent: bool = False

    def __post_init__(self) -> None:
        with matplotlib.rc_context(_STYLE):
            self._figure = Figure(figsize=(self.width, self.height), layout="constrained")
            FigureCanvasSVG(self._figure)
            self._axes = self._figure.add_subplot()
            self._axes.grid(axis="x", visible=False)
            self._axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 2.5, 5, 10]))
            self._axes.margins(x=0.01)
            if self.logarithmic:
                self._axes.set_yscale("log")

    def curve(
        self,
        x: np.ndarray,
        y: np.ndarray,
        colour: str,
        name: str | None = None,
        faint: bool = False,
        dashes: tuple[float, ...] = (),
    ) -> None:
        """Draw `y` over `x`; a long one as its mean, within a band from its lowest to its highest values.

        Args:
            dashes: lengths of dashes and gaps, in widths of the line; none: solid.
        """
        drawn = downsample(x, y)
        if drawn.low is not None:
            self._axes.fill_between(drawn.x, drawn.low, drawn.high, color=_COLOURS[colour], alpha=0.2, linewidth=0)
        style: dict[str, Any] = {"alpha": 0.35, "linewidth": 0.9} if faint else {}
        style |= {"dashes": dashes} if dashes else {}
        marker = "o" if len(x) == 1 else None
        self._axes.plot(drawn.x, drawn.y, color=_COLOURS[colour], label=name, marker=marker, **style)

    def points(self, x: np.ndarray, y: np.ndarray, colour: str, name: str) -> None:
        """Draw a few values with a dot each; no dots where there are many."""
        drawn = downsample(x, y)
        marker = "o" if len(x) <= 60 else None
        self._axes.plot(drawn.x, drawn.y, color=_COLOURS[colour], label=name, marker=marker, markersize=3.5)

    def stack(self, x: np.ndarray, layers: dict[str, np.ndarray], colours: list[str]) -> None:
        """Draw the mean of each layer over `x`, one on top of the other."""
        means = [downsample(x, values) for values in layers.values()]
        self._axes.stackplot(
            means[0].x, [mean.y for mean in means], labels=list(layers), colors=[_COLOURS[c] for c in colours], lw=0
        )

    def from_zero(self) -> None:
        """Let the y axis begin at zero."""
        self._axes.set_ylim(bottom=0, top=self._axes.get_ylim()[1] * 1.05)

    def up_to(self, top: float) -> None:
        """Let the y axis end at `top`; what is above is cut off."""
        self._axes.set_ylim(top=top)

    def svg(self) -> str:
        """Return the finished chart."""
        with matplotlib.rc_context(_STYLE):
            for step in self.resumed_at:
                self._axes.axvline(step, color=_COLOURS["muted"], linewidth=0.9, linestyle=(0, (3, 3)), zorder=0.5)
            formatter = FuncFormatter(lambda value, _: f"{value:.0%}" if self.percent else short(value))
            self._axes.yaxis.set_major_formatter(formatter)
            self._axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
            if not self.logarithmic:
                self._axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
            if self._axes.get_legend_handles_labels()[0]:
                self._axes.legend(
                    loc="lower right", bbox_to_anchor=(1, 1), ncols=4, handlelength=1.2, fontsize=9, borderpad=0.2
                )
            text = io.StringIO()
            self._figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return _for_the_page(text.getvalue(), self.label)


def downsample(x: np.ndarray, y: np.ndarray) -> Curve:
    """Merge a curve of more than 2 · BINS points into BINS stretches of equally many points.

    Points where `y` is not finite are left out.
    """
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= 2 * BINS:
        return Curve(x, y)
    starts = np.linspace(0, len(x), BINS, endpoint=False).astype(np.int64)
    counts = np.diff(starts, append=len(x))
    return Curve(
        x=np.add.reduceat(x.astype(np.float64), starts) / counts,
        y=np.add.reduceat(y, starts) / counts,
        low=np.minimum.reduceat(y, starts),
        high=np.maximum.reduceat(y, starts),
    )


def smooth(y: np.ndarray, span: int) -> np.ndarray:
    """Return the mean of up to `span` values before and after each, fewer at the ends but as many on both sides."""
    total = np.concatenate([[0.0], np.cumsum(y, dtype=np.float64)])
    index = np.arange(len(y))
    reach = np.minimum(span, np.minimum(index, len(y) - 1 - index))
    return (total[index + reach + 1] - total[index - reach]) / (2 * reach + 1)


def short(value: float) -> str:
    """A number as a person reads it on an axis: 1.5k, 20M, 3e-4."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 0.01:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def _for_the_page(svg: str, label: str) -> str:
    """Cut an SVG file down to an element that fills its place and wears the page's colours and type."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{label}">', svg, count=1)
    for name, stand_in in _COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"<[^>]*>", lambda tag: _LONG_NUMBER.sub(lambda n: f"{float(n.group()):.2f}", tag.group()), svg)
    return re.sub(r"\s*\n\s*", "\n", svg)
