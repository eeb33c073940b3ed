"""The report as one self-contained HTML page: no external script, style, font or picture."""

import html
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
import matplotlib

from semcorr.artifacts.provenance import KEY, dumps
from semcorr.params import Params
from semcorr.pck import headline_key, threshold_key

INK = "#7f7f7e"  # replaced by the page's text colour in charts
DASHES = ("-", "--", ":", "-.")
LEVELS = {
    "viewpoint_variation": {"0": "easy", "1": "medium", "2": "hard"},
    "scale_variation": {"0": "easy", "1": "medium", "2": "hard"},
    "truncation": {"0": "none", "1": "source", "2": "target", "3": "both"},
    "occlusion": {"0": "none", "1": "source", "2": "target", "3": "both"},
    "mirror": {"0": "same way", "1": "mirrored"},
}


def page(
    boards: dict[str, list[dict[str, Any]]],
    cells: dict[str, Any],
    galleries: dict[str, Any],
    params: Params,
    record: dict[str, Any],
) -> str:
    """The whole page.

    Args:
        boards: dataset -> its rows, best first, from `tables.leaderboard`.
        cells: name -> the cell's JSON.
        galleries: "<backbone>/<weights>/<dataset>" -> the pictures' JSON.
        params: of the experiment.
        record: the page's provenance.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("semcorr.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    key = headline_key(params.evaluate.thresholds)
    return environment.get_template("report.html").render(
        meta=f'<meta name="{KEY}" content="{html.escape(dumps(record))}">',
        preset=params.preset,
        datasets=[_dataset(name, board, cells, galleries, params, key) for name, board in boards.items()],
        trainings=_trainings(cells),
        thresholds=list(map(threshold_key, params.evaluate.thresholds)),
        headline=key,
        evaluate=params.evaluate,
        rule=params.grid.rules[0],
    )


def _dataset(
    name: str, board: list[dict[str, Any]], cells: dict[str, Any], galleries: dict[str, Any], params: Params, key: str
) -> dict[str, Any]:
    """The page's section on one dataset."""
    listed = {row["name"]: cells[row["name"]] for row in board}
    first = listed[board[0]["name"]]
    groups = {"category": {name: cell["per_category_keypoint"] for name, cell in listed.items()}}
    if len(first["per_subset"]) > 1:
        groups["sub-set"] = {name: cell["per_subset"] for name, cell in listed.items()}
    for what in first["per_difficulty"]:
        groups[what.replace("_", " ")] = {
            name: {LEVELS[what].get(level, level): row for level, row in cell["per_difficulty"][what].items()}
            for name, cell in listed.items()
        }
    curves = {label(row): listed[row["name"]]["error_distribution"] for row in board}
    return {
        "name": name,
        "board": board,
        "cell": first,
        "verdict": verdict(board, key),
        "heatmaps": [_heatmap(what, values, board, key) for what, values in groups.items()],
        "curves": chart(
            [(label, curve["threshold"], [100 * value for value in curve["pck"]]) for label, curve in curves.items()],
            "threshold, as a fraction of the reference",
            "PCK per keypoint, %",
            [row["rule"] for row in board],
        ),
        "galleries": [
            {"title": f"{backbone} {weights}", **galleries[f"{backbone}/{weights}/{name}"]}
            for backbone, weights in dict.fromkeys((row["backbone"], row["weights"]) for row in board)
        ],
        "provenance": [{"name": label(row), "rows": facts(listed[row["name"]])} for row in board],
    }


def label(row: dict[str, Any]) -> str:
    """A row's name without its dataset."""
    return f"{row['backbone']} {row['weights']} {row['rule']}"


def verdict(board: list[dict[str, Any]], key: str) -> str:
    """Say in a sentence or two which row is best and whether the difference is real."""
    best, *others = board
    winner = f"{label(best)} has the highest {key}, {best['headline']:.1f} % ({_span(best['interval'])})."
    if not others:
        return winner
    if ties := [row for row in others if row["best"]]:
        names = ", ".join(label(row) for row in ties[:3]) + (f" and {len(ties) - 3} more" if len(ties) > 3 else "")
        return f"{winner} Its lead over {names} may be chance."
    behind = others[0]["behind"]
    lead = [-bound for bound in reversed(behind["interval"])]
    margin = f"{-behind['difference']:.1f} points ({_span(lead)}, p {_p(behind['p'])})"
    return f"{winner} The difference is real: it leads the next, {label(others[0])}, by {margin}."


def _span(interval: Sequence[float]) -> str:
    return f"95 % interval {interval[0]:.1f} to {interval[1]:.1f}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value > 0.001 else "at most 0.001"


def _heatmap(what: str, values: dict[str, Any], board: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """A table of rows by groups, in percent; None where a row lacks a group."""
    counts: dict[str, int] = {}
    for column, group in (item for groups in values.values() for item in groups.items()):
        counts.setdefault(column, group["num_keypoints"])
    rows = []
    for row in board:
        groups = values[row["name"]]
        rows.append({"label": label(row), "values": [100 * groups[c][key] if c in groups else None for c in counts]})
    return {"what": what, "columns": counts, "rows": rows}


def _trainings(cells: dict[str, Any]) -> dict[str, str] | None:
    """Charts of the validation PCK and training loss of every tuning behind the cells."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for name, cell in cells.items():
        backbone, weights, _, _ = name.split("/")
        for record in _records(cell["provenance"]):
            if record["stage"] == "finetune":
                curves[f"{backbone} {weights}"] = record["curve"]
    if not curves:
        return None
    steps = {label: [row for row in curve if row["loss"] is not None] for label, curve in curves.items()}
    return {
        "pck": chart(
            [(label, [r["step"] for r in rows], [100 * r["pck"] for r in rows]) for label, rows in curves.items()],
            "step",
            "validation PCK@0.10, %",
        ),
        "loss": chart(
            [(label, [r["step"] for r in rows], [r["loss"] for r in rows]) for label, rows in steps.items()],
            "step",
            "mean training loss",
        ),
    }


def _records(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Iterate over a provenance record and the records of all its inputs."""
    yield record
    for part in record["inputs"].values():
        if isinstance(part, dict) and "stage" in part:
            yield from _records(part)


def facts(cell: dict[str, Any]) -> dict[str, str]:
    """The origin of a cell: its tensors, versions, and every parameter it depends on."""
    known: dict[str, Any] = {}
    for record in _records(cell["provenance"]):
        if "origin" in record:
            known["tensors"] = record["origin"]
        if record["stage"] == "finetune":
            known["best epoch"] = record["epoch"]
        known |= {f"version of {name}": version for name, version in record.get("versions", {}).items()}
    known["left out"] = ", ".join(f"{count:,} {what}" for what, count in cell["left_out"].items()) or "nothing"
    known["fingerprint"] = cell["provenance"]["fingerprint"]
    settings: dict[str, Any] = {}
    for record in _records(cell["provenance"]):
        settings |= record["settings"]
    return {key: str(value) for key, value in (known | dict(sorted(settings.items()))).items()}


def chart(
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]], x: str, y: str, dashes: Sequence[str] | None = None
) -> str:
    """A line chart as SVG that adopts the page's colours and width; deterministic.

    Args:
        series: name, x values and y values of each line.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        dashes: a word for each line. Lines with the same word share a dash pattern; lines whose names differ only in
            that word share a colour.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    dashes = dashes or [""] * len(series)
    words = list(dict.fromkeys(dashes))
    kinds = [name.removesuffix(f" {word}") for (name, *_), word in zip(series, dashes, strict=True)]
    colours = {kind: index for index, kind in enumerate(dict.fromkeys(kinds))}
    palette = matplotlib.colormaps["tab10" if len(colours) <= 10 else "turbo"]
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "semcorr",
        "font.family": "sans-serif",
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
        "grid.color": INK,
        "grid.alpha": 0.25,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7, 3.6 + 0.22 * len(series)), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for (name, xs, ys), kind, word in zip(series, kinds, dashes, strict=True):
            index = colours[kind]
            colour = palette(index) if len(colours) <= 10 else palette(index / (len(colours) - 1))
            axes.plot(xs, ys, label=name, color=colour, linestyle=DASHES[words.index(word) % len(DASHES)])
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(True)
        figure.legend(loc="outside lower left", frameon=False, ncols=1)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r' width="[\d.]+pt"| height="[\d.]+pt"', "", svg[svg.index("<svg") :], count=2)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    title = f"{y} over {x}: {', '.join(name for name, *_ in series)}"
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
    return svg.replace(INK, "currentColor")
