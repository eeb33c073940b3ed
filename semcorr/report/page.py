"""The report as one self-contained HTML page: no external script, style, font or picture."""

import html
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2

from semcorr.artifacts.provenance import KEY, dumps
from semcorr.params import Params
from semcorr.pck import threshold_key
from semcorr.report.charts import chart, colours
from semcorr.report.tables import AXES, latex, markdown, percent

LEVELS = {
    "viewpoint_variation": {"0": "easy", "1": "medium", "2": "hard"},
    "scale_variation": {"0": "easy", "1": "medium", "2": "hard"},
    "truncation": {"0": "none", "1": "source", "2": "target", "3": "both"},
    "occlusion": {"0": "none", "1": "source", "2": "target", "3": "both"},
    "mirror": {"0": "same way", "1": "mirrored"},
}
WIDE = 10  # columns of a table; more stand upright
GAP = 8  # between the two images of a pair, in their pixels


def page(
    boards: dict[str, list[dict[str, Any]]],
    cells: dict[str, Any],
    galleries: dict[str, Any],
    layers: list[dict[str, Any]],
    params: Params,
    record: dict[str, Any],
) -> str:
    """The whole page.

    Args:
        boards: dataset -> its rows, best first, from `tables.leaderboard`.
        cells: name -> the cell's JSON.
        galleries: "<backbone>/<weights>/<dataset>" -> the pictures' JSON.
        layers: the JSON of every network that was measured at every layer.
        params: of the experiment.
        record: the page's provenance.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("semcorr.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    key = threshold_key(params.evaluate.headline)
    shown = [axis for axis in AXES if axis != "dataset" and len({_axis(cell, axis) for cell in cells}) > 1]
    names = {name: label(name, shown) for name in cells}
    weights = list(dict.fromkeys(label(name, _but_rule(shown)) for name in cells))
    return environment.get_template("report.html").render(
        meta=f'<meta name="{KEY}" content="{html.escape(dumps(record))}">',
        preset=params.preset,
        axes=shown,
        same={axis: _axis(next(iter(cells)), axis) for axis in AXES if axis not in (*shown, "dataset")},
        colours=dict(zip(weights, colours(len(weights)), strict=True)),
        datasets=[_dataset(name, board, cells, galleries, params, names, shown) for name, board in boards.items()],
        layers=[_layers(measured, key, shown, weights) for measured in layers],
        trainings=_trainings(cells, shown, weights),
        thresholds=list(map(threshold_key, params.evaluate.thresholds)),
        headline=key,
        gap=GAP,
        wide=WIDE,
    )


def _axis(name: str, axis: str) -> str:
    return name.split("/")[AXES.index(axis)]


def label(name: str, axes: Sequence[str]) -> str:
    """A cell's name by some of its axes; all the same in every cell, it is the weights' name.

    >>> label("b/frozen/d/argmax", ["weights", "rule"])
    'frozen argmax'
    >>> label("b/frozen/d/argmax", [])
    'frozen'
    """
    return " ".join(_axis(name, axis) for axis in AXES if axis in axes) or _axis(name, "weights")


def _dataset(
    name: str,
    board: list[dict[str, Any]],
    cells: dict[str, Any],
    galleries: dict[str, Any],
    params: Params,
    names: dict[str, str],
    axes: list[str],
) -> dict[str, Any]:
    """The page's section on one dataset."""
    key = threshold_key(params.evaluate.headline)
    listed = {row["name"]: cells[row["name"]] for row in board}
    first = listed[board[0]["name"]]
    groups = {"category": {name: cell["per_category_keypoint"] for name, cell in listed.items()}}
    if len(first["per_subset"]) > 1:
        groups["sub-set"] = {name: cell["per_subset"] for name, cell in listed.items()}
    for what in (what for what, levels in first["per_difficulty"].items() if len(levels) > 1):
        groups[what.replace("_", " ")] = {
            name: {LEVELS[what].get(level, level): row for level, row in cell["per_difficulty"][what].items()}
            for name, cell in listed.items()
        }
    ordered = [cell for cell in cells if cell in listed]  # as the grid has them
    curves = [(names[cell], listed[cell]["error_distribution"]) for cell in ordered]
    kinds = [label(cell, _but_rule(axes)) for cell in ordered]
    return {
        "name": name,
        "board": [row | {"label": names[row["name"]], "kind": label(row["name"], _but_rule(axes))} for row in board],
        "cell": first,
        "verdict": verdict(board, key, names),
        "heatmaps": [_heatmap(what, values, board, key, names) for what, values in groups.items()],
        "curves": chart(
            [(cell, curve["threshold"], [100 * value for value in curve["pck"]]) for cell, curve in curves],
            "threshold, as a fraction of the reference",
            "PCK per keypoint, %",
            kinds,
            [_axis(cell, "rule") for cell in ordered],
        ),
        "confidence": chart(
            [
                (names[cell], *(listed[cell]["confidence"][part] for part in ("coverage", "risk_at")))
                for cell in ordered
            ],
            "coverage: fraction of answers kept, the most similar first",
            "risk: fraction wrong",
            kinds,
            [_axis(cell, "rule") for cell in ordered],
        ),
        "errors": _errors(board, listed, names),
        "keypoints": _keypoints(board, listed, names),
        **_gallery(name, first["per_category_keypoint"], galleries, key, axes),
        "paper": {"LaTeX": latex({name: board}, cells, params), "Markdown": markdown({name: board}, cells, params)},
        "provenance": [{"name": names[row["name"]], "rows": facts(listed[row["name"]])} for row in board],
    }


def _but_rule(axes: Sequence[str]) -> list[str]:
    return [axis for axis in axes if axis != "rule"]


def verdict(board: list[dict[str, Any]], key: str, names: dict[str, str]) -> str:
    """Say in a sentence or two which row is best and whether the difference is real.

    Args:
        board: the rows, best first.
        key: of the headline threshold.
        names: what each row is called.
    """
    best, *others = board
    winner = f"{names[best['name']]} has the highest {key}, {best['headline']:.1f} % ({_span(best['interval'])})."
    if not others:
        return winner
    if ties := [row for row in others if row["best"]]:
        tied = ", ".join(names[row["name"]] for row in ties[:3])
        return f"{winner} Its lead over {tied}{f' and {len(ties) - 3} more' if len(ties) > 3 else ''} may be chance."
    behind = others[0]["behind"]
    lead = [-bound for bound in reversed(behind["interval"])]
    margin = f"{-behind['difference']:.1f} points ({_span(lead)}, p {_p(behind['p'])})"
    return f"{winner} The difference is real: it leads the next, {names[others[0]['name']]}, by {margin}."


def _span(interval: Sequence[float]) -> str:
    return f"95 % interval {interval[0]:.1f} to {interval[1]:.1f}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value > 0.001 else "at most 0.001"


def _heatmap(
    what: str, values: dict[str, Any], board: list[dict[str, Any]], key: str, names: dict[str, str]
) -> dict[str, Any]:
    """A table of groups by rows of the board, in percent; None where a row lacks a group."""
    counts: dict[str, int] = {}
    for column, group in (item for groups in values.values() for item in groups.items()):
        counts.setdefault(column, group["num_keypoints"])
    cells = [row["name"] for row in board]
    rows = [
        {
            "label": group,
            "count": count,
            "values": [100 * values[cell][group][key] if group in values[cell] else None for cell in cells],
        }
        for group, count in counts.items()
    ]
    return {"what": what, "columns": [names[cell] for cell in cells], "rows": rows}


def _errors(board: list[dict[str, Any]], cells: dict[str, Any], names: dict[str, str]) -> list[dict[str, Any]]:
    """Of each row the shares of its wrong answers by what they hit, in percent with intervals."""
    return [
        {
            "label": names[row["name"]],
            "shares": {kind: percent(share) for kind, share in cells[row["name"]]["errors"].items()},
        }
        for row in board
    ]


def _keypoints(board: list[dict[str, Any]], cells: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """PCK of every keypoint by name: categories -> rows of the keypoint, how often it is asked for, and the values."""
    found = {}
    for category, keypoints in cells[board[0]["name"]]["per_keypoint"].items():
        rows = []
        for keypoint, first in keypoints.items():
            values = [percent(cells[row["name"]]["per_keypoint"][category][keypoint]) for row in board]
            rows.append({"keypoint": keypoint, "count": first["num_keypoints"], "values": values})
        found[category] = rows
    return {"columns": [names[row["name"]] for row in board], "categories": found}


def _gallery(
    dataset: str, categories: dict[str, Any], galleries: dict[str, Any], key: str, axes: list[str]
) -> dict[str, Any]:
    """The pairs of a dataset, each with what every backbone and weights make of it; and one that is typical.

    Typical is the median pair of the category that is in the middle for the best row.
    """
    shown = {
        label(f"{name}/", _but_rule(axes)): gallery
        for name, gallery in galleries.items()
        if name.endswith(f"/{dataset}")
    }
    first = next(iter(shown.values()))
    pairs = [
        {
            **{part: pair[part] for part in ("category", "which", "pair", "source", "target")},
            "number": number,
            "columns": [
                {"name": name, "keypoints": (own := gallery["pairs"][number])["keypoints"], "map": own["map"]}
                | {"right": sum(keypoint["correct"] for keypoint in own["keypoints"])}
                for name, gallery in shown.items()
            ],
        }
        for number, pair in enumerate(first["pairs"])
    ]
    ranked = sorted(categories, key=lambda name: categories[name][key])
    middle = ranked[(len(ranked) - 1) // 2]
    typical = next(pair for pair in pairs if (pair["category"], pair["which"]) == (middle, "median"))
    return {"pairs": pairs, "typical": typical, "drawn": first["rule"], "chosen_by": next(iter(shown))}


def _layers(measured: dict[str, Any], key: str, axes: list[str], weights: list[str]) -> dict[str, Any]:
    """The chart and the table of PCK at every layer of a frozen network: layers by facets, in percent."""
    rows, facets = measured["layers"], list(dict.fromkeys(row["facet"] for row in measured["layers"]))
    values = {(row["layer"], row["facet"]): row["overall_keypoint"][key] for row in rows}
    best = max(values, key=lambda place: values[place]["mean"])
    curves = {
        facet: [row["layer"] for row in rows if row["facet"] == facet and isinstance(row["layer"], int)]
        for facet in facets
    }
    kind = label(f"{measured['backbone']}/frozen/{measured['dataset']}/", _but_rule(axes))
    return {
        **{part: measured[part] for part in ("backbone", "dataset", "model", "rule", "reference", "num_pairs")},
        "facets": facets,
        "best": {"layer": best[0], "facet": best[1], "value": percent(values[best])},
        "rows": [
            {
                "layer": layer,
                "stride": next(row["stride"] for row in rows if row["layer"] == layer),
                "values": [percent(values[layer, facet]) if (layer, facet) in values else None for facet in facets],
            }
            for layer in dict.fromkeys(row["layer"] for row in rows)
        ],
        "chart": chart(
            [(facet, at, [100 * values[layer, facet]["mean"] for layer in at]) for facet, at in curves.items()],
            "layer",
            f"{key} per keypoint, %",
            [kind] * len(facets),
            facets,
            among=weights,
        ),
    }


def _trainings(cells: dict[str, Any], axes: list[str], weights: list[str]) -> dict[str, str] | None:
    """Charts of the validation PCK and training loss of every tuning behind the cells."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for name, cell in cells.items():
        for record in _records(cell["provenance"]):
            if record["stage"] == "finetune":
                curves[label(name, _but_rule(axes))] = record["curve"]
    if not curves:
        return None
    steps = {label: [row for row in curve if row["loss"] is not None] for label, curve in curves.items()}
    return {
        "pck": chart(
            [(label, [r["step"] for r in rows], [100 * r["pck"] for r in rows]) for label, rows in curves.items()],
            "step",
            "validation PCK@0.10, %",
            list(curves),
            among=weights,
        ),
        "loss": chart(
            [(label, [r["step"] for r in rows], [r["loss"] for r in rows]) for label, rows in steps.items()],
            "step",
            "mean training loss",
            list(steps),
            among=weights,
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
