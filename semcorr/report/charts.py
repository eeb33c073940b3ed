"""Line charts as SVG that adopts the page's colours; and the colours that tell weights apart everywhere on it."""

import colorsys
import html
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib

INK = "#7f7f7e"  # replaced by the page's text colour in charts
DASHES = ("-", (0, (4, 2)), ":", "-.")
# After Okabe and Ito (2008), without their greens and reds, which mean right and wrong.
COLOURS = ("#0072b2", "#e69f00", "#8f6bb1", "#56b4e9", "#8c6d31", "#cc79a7")


def colours(count: int) -> list[str]:
    """As many colours, none of them green or red."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    hues = [25 + 230 * index / count for index in range(count)]  # of 55 degrees before green and 175 behind it
    turned = [hue if hue < 80 else hue + 85 for hue in hues]
    return [
        matplotlib.colors.to_hex(colorsys.hls_to_rgb(hue / 360, (0.42, 0.62)[index % 2], 0.75))
        for index, hue in enumerate(turned)
    ]


def chart(
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    kinds: Sequence[str],
    dashes: Sequence[str] | None = None,
    among: Sequence[str] | None = None,
) -> str:
    """A line chart as SVG that adopts the page's text colour and width; deterministic.

    Args:
        series: name, x values and y values of each line.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        kinds: a word for each line. Lines with the same word share a colour.
        dashes: a word for each line. Lines with the same word share a dash pattern.
        among: all kinds that have a colour on the page; None means `kinds`.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    dashes = dashes or [""] * len(series)
    words, all_kinds = list(dict.fromkeys(dashes)), list(dict.fromkeys(among or kinds))
    palette = dict(zip(all_kinds, colours(len(all_kinds)), strict=True))
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "semcorr",
        "font.family": "sans-serif",
        "font.size": 11,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
        "grid.color": INK,
        "grid.alpha": 0.25,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    columns = 2 if len(series) > 1 else 1
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5.6, 3.3 + 0.24 * -(-len(series) // columns)), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for (name, xs, ys), kind, word in zip(series, kinds, dashes, strict=True):
            dash: Any = DASHES[words.index(word) % len(DASHES)]
            axes.plot(xs, ys, label=name, color=palette[kind], linestyle=dash, linewidth=2)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=all(isinstance(at, int) for _, xs, _ in series for at in xs)))
        figure.legend(loc="outside lower left", frameon=False, ncols=columns)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r' width="[\d.]+pt"| height="[\d.]+pt"', "", svg[svg.index("<svg") :], count=2)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    title = f"{y} over {x}: {', '.join(name for name, *_ in series)}"
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
    return svg.replace(INK, "currentColor")
