"""One look for every figure, and the ways to keep one: a file, or SVG inside a page.

Inside a page the text and grid take the page's colours, light or dark.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from equipes.errors import InputError
from equipes.files import atomic_write

INK = "#1f2328"
GRID = "#d3d9e0"
COLORS = {
    "energy": "#2f6fdb",
    "forces": "#d9622b",
    "stress": "#1a936f",
    "other": "#8b5cc7",
    "quiet": "#8a94a0",
}
FORMATS = (".png", ".svg", ".pdf")

STYLE: Any = {
    "font.size": 9.5,
    "font.family": ["DejaVu Sans"],
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "svg.fonttype": "none",  # text stays text: selectable, in the page's own font, and small
    "svg.hashsalt": "equipes",  # the same figure gives the same bytes
    "savefig.dpi": 160,
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run a drawing function under the common style, leaving matplotlib's global settings alone."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that arranges its panels itself; no window system is touched."""
    return Figure(figsize=(width, height), layout="constrained")


def plain_log_axis(axes: Axes, which: str = "y") -> None:
    """Logarithmic axis with decimal tick labels (0.01, 1, 100) instead of powers of ten in math type."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.yaxis if which == "y" else axes.xaxis
    low, high = axis.get_view_interval()
    subs = (1.0,) if low > 0 and high / low > 200 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(10, subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def short(value: float, sign: bool = False) -> str:
    """Three significant digits without an exponent as long as the number stays readable: 0.0123, 4.56, 2810."""
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:{'+' if sign else ''}.2e}"
    exponent = int(f"{value:.2e}".partition("e")[2])  # after rounding: 9.999 has the digits of 10.0
    digits = max(0, 2 - exponent)
    return f"{value:{'+' if sign else ''}.{digits}f}"


def save(figure: Figure, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a figure as PNG, SVG or PDF, by the suffix of `path`.

    Raises `InputError` for another suffix and for what `equipes.files.atomic_write` refuses.
    """
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix not in FORMATS:
        raise InputError(f"{os.fspath(path)}: figures are written as {', '.join(FORMATS)}; give such a name")
    metadata = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[suffix]
    with mpl.rc_context(STYLE), atomic_write(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, format=suffix[1:], facecolor="white", metadata=metadata)


def inline_svg(figure: Figure, *, description: str) -> str:
    """The figure as an `<svg>` element for a page: transparent, with text and grid in the page's own colours.

    Dense point clouds in it are images (`rasterized=True` on the artist), so its size stays bounded.
    """
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--grid)")
    # A fixed size in points would not shrink on a narrow window; the viewBox keeps the proportions.
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    fluid = r'<svg \1style="width:100%;max-width:\2pt"'
    svg = re.sub(r'<svg ([^>]*?)width="([\d.]+)pt"', fluid, svg, count=1)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
