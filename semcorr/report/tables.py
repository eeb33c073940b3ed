"""Tables of all cells: the leaderboard, with a paired bootstrap, and the rows of the exported files."""

import re
from typing import Any

import pandas as pd

from semcorr import pck
from semcorr.engine.graph import STAGES
from semcorr.errors import UserError
from semcorr.params import Params

SIGNIFICANT = 0.05
AXES = tuple(STAGES["evaluate"].axes)


def leaderboard(
    cells: dict[str, Any], pairs: dict[str, pd.DataFrame], dataset: str, params: Params
) -> list[dict[str, Any]]:
    """The rows of one dataset, best first, each compared with the best by a paired bootstrap.

    Returns:
        Rows with `name`, the axes' values, `values` (percent at each threshold), `headline`, `interval`, `image`,
        `category`, `others` (under other references), `geometry_aware`, `dagger`, `kap` and `off_object` (each a mean
        with its interval, or None), and `behind`: the difference from the best row, its interval and p, None for the
        best row itself. `best` is True for that row and those not significantly worse. `hold_outs`: see there.
    """
    key = pck.threshold_key(params.evaluate.headline)
    rows = []
    for name, cell in cells.items():
        known = _named(name)
        if known["dataset"] != dataset:
            continue
        overall = cell["overall_keypoint"]
        others = list(cell["references"])[1:]
        rows.append(
            {
                **known,
                "values": [100 * value["mean"] for value in overall.values()],
                "headline": 100 * overall[key]["mean"],
                "interval": [100 * bound for bound in overall[key]["ci95"]],
                "image": 100 * cell["overall_image"][key]["mean"],
                "category": 100 * cell["overall_category"][key]["mean"],
                "others": {other: 100 * cell["references"][other]["overall_keypoint"][key]["mean"] for other in others},
                "geometry_aware": percent(cell["geometry_aware"] and cell["geometry_aware"][key]),
                "dagger": percent(cell["dagger"][key]),
                "kap": percent(cell["confidence"]["kap"]),
                "off_object": percent(cell["off_object"]),
            }
        )
    rows.sort(key=lambda row: -row["headline"])
    best = pairs[rows[0]["name"]]
    settings = params.evaluate
    for row in rows:
        table = pairs[row["name"]]
        if not table[["pair", "num_keypoints"]].equals(best[["pair", "num_keypoints"]]):
            raise UserError(f"{row['name']} and {rows[0]['name']} were not scored on the same pairs")
        first, second = (hits[[key]].to_numpy(float) for hits in (best, table))
        counts = best["num_keypoints"].to_numpy(float)
        lead = pck.compare(first, second, counts, samples=settings.bootstrap, seed=settings.seed)
        row["behind"] = None
        if row is not rows[0]:
            row["behind"] = difference(lead)
        row["best"] = row is rows[0] or row["behind"]["p"] >= SIGNIFICANT
        row["hold_outs"] = _hold_outs(row, cells, pairs, params)
    return rows


def _hold_outs(
    row: dict[str, Any], cells: dict[str, Any], pairs: dict[str, pd.DataFrame], params: Params
) -> dict[str, Any] | None:
    """PCK of a row on what tunings see and on what is held out, and a tuned row's gain over the frozen network.

    Returns:
        Of each group that has keypoints `num_keypoints`, `value` (a mean with its interval, in percent), and `gain`
        (difference, interval, p; None for a baseline). None if nothing is held out. `loses`: the unseen groups on
        which a tuned row that gains on the seen one is significantly worse than frozen.
    """
    key, settings = pck.threshold_key(params.evaluate.headline), params.evaluate
    if "hold_outs" not in cells[row["name"]]:
        return None
    frozen = "/".join("frozen" if axis == "weights" else row[axis] for axis in AXES)
    tuned = row["weights"] in params.grid.tunings
    shown: dict[str, Any] = {}
    for group, scores in cells[row["name"]]["hold_outs"].items():
        if not scores[key]["num_keypoints"]:
            continue
        gain = None
        if tuned:
            # Those pairs alone, in the order of `semcorr compare`, whose numbers these are.
            own, base = (pairs[name].query(f"`{group}` > 0").sort_values("pair") for name in (row["name"], frozen))
            counts = base[group].to_numpy(float)
            first, second = (table[[f"{group} correct"]].to_numpy(float) for table in (base, own))
            gain = difference(pck.compare(first, second, counts, samples=settings.bootstrap, seed=settings.seed))
        shown[group] = {
            "num_keypoints": scores[key]["num_keypoints"],
            "value": percent(scores[key]),
            "gain": gain,
        }
    gains = {group: value["gain"] for group, value in shown.items() if value["gain"]}
    real = {group: gain["difference"] for group, gain in gains.items() if gain["p"] < SIGNIFICANT}
    loses = [group for group, gain in real.items() if group != "seen" and gain < 0 < real.get("seen", 0)]
    return {"groups": shown, "loses": loses}


def difference(compared: pck.Difference) -> dict[str, Any]:
    """A difference at one threshold, in percent, with its interval and p."""
    low, high = 100 * float(compared.low[0]), 100 * float(compared.high[0])
    return {"difference": 100 * float(compared.mean[0]), "interval": [low, high], "p": float(compared.p[0])}


def percent(row: dict[str, Any] | None) -> list[float] | None:
    """A mean and its interval in percent; None if nothing was counted."""
    return None if not row or row["mean"] is None else [100 * row["mean"], *(100 * bound for bound in row["ci95"])]


def summary(cells: dict[str, Any]) -> dict[str, Any]:
    """The three averages of every cell: dataset, backbone, weights, rule, average, threshold."""
    summary: dict[str, Any] = {}
    for name, cell in cells.items():
        backbone, weights, dataset, rule = name.split("/")
        place = summary.setdefault(dataset, {}).setdefault(backbone, {}).setdefault(weights, {})
        place[rule] = {
            f"per_{average}": {key: value["mean"] for key, value in cell[f"overall_{average}"].items()}
            for average in pck.AVERAGES
        }
    return summary


def _named(name: str) -> dict[str, str]:
    """A cell's name, its axes, and its name without the dataset."""
    values = dict(zip(AXES, name.split("/"), strict=True))
    return {"name": name, **values, "cell": f"{values['backbone']} {values['weights']} {values['rule']}"}


def curves(cells: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of curves.csv: PCK over thresholds."""
    rows = []
    for name, cell in cells.items():
        known, curve = _named(name), cell["error_distribution"]
        for threshold, value in zip(curve["threshold"], curve["pck"], strict=True):
            rows.append({"dataset": known["dataset"], "cell": known["cell"], "threshold": threshold, "pck": value})
    return rows


def categories(cells: dict[str, Any], params: Params) -> list[dict[str, Any]]:
    """The rows of categories.csv: the headline PCK of each category."""
    key = pck.threshold_key(params.evaluate.headline)
    return [
        {"dataset": known["dataset"], "cell": known["cell"], "category": category, "pck": values[key]}
        for known, cell in ((_named(name), cell) for name, cell in cells.items())
        for category, values in cell["per_category_keypoint"].items()
    ]


def markdown(boards: dict[str, list[dict[str, Any]]], cells: dict[str, Any], params: Params) -> str:
    """One table per dataset, in the order of the grid."""
    parts = []
    for dataset, board in boards.items():
        heads, rows = _written(board, list(cells), params)
        lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * 3 + "---:|" * (len(heads) - 3)]
        for row in rows:
            cell = [f"**{value}**" if best else value for value, best in row]
            lines.append("| " + " | ".join(cell) + " |")
        about = f"{_about(cells[board[0]['name']])}. Bold: the best, and those not significantly worse."
        parts.append("\n".join([f"### {dataset}", "", about, "", *lines]) + "\n")
        if board[0]["hold_outs"]:
            parts.append(_generalisation(dataset, board, list(cells), params))
    return "\n".join(parts)


def _generalisation(dataset: str, board: list[dict[str, Any]], names: list[str], params: Params) -> str:
    """The table of what tunings see and what is held out: of each cell a row per group."""
    key = pck.threshold_key(params.evaluate.headline)
    heads = ["backbone", "weights", "rule", "group", key, "95 % interval", "gain over frozen", "its interval", ""]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * 4 + "---:|" * 4 + "---|"]
    for row in sorted(board, key=lambda row: names.index(row["name"])):
        for group, found in row["hold_outs"]["groups"].items():
            mean, *interval = found["value"]
            values = [*(row[axis] for axis in ("backbone", "weights", "rule")), group, f"{mean:.1f}"]
            values += ["{:.1f} to {:.1f}".format(*interval), "", "", ""]
            if gain := found["gain"]:
                values[6:8] = [f"{gain['difference']:+.1f}", "{:+.1f} to {:+.1f}".format(*gain["interval"])]
            if group in row["hold_outs"]["loses"]:
                values[8] = "loses"
            lines.append("| " + " | ".join(values) + " |")
    counts = [f"{value['num_keypoints']:,} {group}" for group, value in board[0]["hold_outs"]["groups"].items()]
    about = (
        f"{key} in percent, per keypoint, by what tunings are trained on (hold_outs): {', '.join(counts)}; gain by a "
        "paired bootstrap. `loses`: significantly worse than frozen there, by a tuning that gains on what it has seen."
    )
    return "\n".join([f"### {dataset}: seen and unseen", "", about, "", *lines]) + "\n"


def latex(boards: dict[str, list[dict[str, Any]]], cells: dict[str, Any], params: Params) -> str:
    """One table per dataset, in the order of the grid, for a paper that uses the package booktabs."""
    parts = []
    for dataset, board in boards.items():
        heads, rows = _written(board, list(cells), params)
        settings = params.evaluate
        about = (
            f"{dataset}. {_about(cells[board[0]['name']])}. Bold: the best, and those not significantly worse (paired "
            f"bootstrap over pairs, {settings.bootstrap:,} samples, p at least {SIGNIFICANT})."
        )
        lines = [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_escaped(about)}}}",
            rf"  \label{{tab:{dataset}}}",
            rf"  \begin{{tabular}}{{lll{'r' * (len(heads) - 3)}}}",
            r"    \toprule",
            f"    {' & '.join(map(_escaped, heads))} \\\\",
            r"    \midrule",
        ]
        for row in rows:
            cell = [rf"\textbf{{{_escaped(value)}}}" if best else _escaped(value) for value, best in row]
            lines.append(f"    {' & '.join(cell)} \\\\")
        lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _about(cell: dict[str, Any]) -> str:
    """What the numbers of a table are, and of how much data."""
    return (
        f"PCK in percent, per keypoint unless named otherwise; reference {cell['protocol']['reference']}; "
        f"{cell['num_pairs']:,} pairs, {cell['num_keypoints']:,} keypoints"
    )


def _written(
    board: list[dict[str, Any]], names: list[str], params: Params
) -> tuple[list[str], list[list[tuple[str, bool]]]]:
    """A board's heads, and its rows in the order of `names`: each value as text, and whether it is marked as best."""
    thresholds = params.evaluate.thresholds
    key, lead = pck.threshold_key(params.evaluate.headline), thresholds.index(params.evaluate.headline)
    heads = ["backbone", "weights", "rule", *map(pck.threshold_key, thresholds)]
    heads += [f"95 % interval of {key}", f"{key} per image", f"{key} per category"]
    heads += [f"{key}, reference {name}" for name in board[0]["others"]]
    rows = []
    for row in sorted(board, key=lambda row: names.index(row["name"])):
        values = [(f"{value:.1f}", at == lead and row["best"]) for at, value in enumerate(row["values"])]
        more = [f"{row['image']:.1f}", f"{row['category']:.1f}", *(f"{value:.1f}" for value in row["others"].values())]
        plain = ["{:.1f} to {:.1f}".format(*row["interval"]), *more]
        axes = [(row[axis], False) for axis in ("backbone", "weights", "rule")]
        rows.append([*axes, *values, *((value, False) for value in plain)])
    return heads, rows


def _escaped(text: str) -> str:
    r"""A text as LaTeX prints it.

    >>> print(_escaped("dinov2_s14, 95 %"))
    dinov2\_s14, 95 \%
    """
    marks = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return re.sub(r"[\\~^&%$#_{}]", lambda found: marks.get(found[0], rf"\{found[0]}"), text)


def headline_row(cell: dict[str, Any], key: str) -> dict[str, float]:
    """A row of `dvc metrics show`, with keys in lower case so that they sort correctly.

    Values are per keypoint and under the first reference unless the key says `per_image` or `reference_<another>`.
    """
    row = {threshold.lower(): value["mean"] for threshold, value in cell["overall_keypoint"].items()}
    row[f"{key.lower()}_per_image"] = cell["overall_image"][key]["mean"]
    for other in list(cell["references"])[1:]:
        row[f"{key.lower()}_reference_{other}"] = cell["references"][other]["overall_keypoint"][key]["mean"]
    return row


def further(cell: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """The measures beside PCK that are one number, each with `mean` and `ci95`; without those that count nothing."""
    found = {"dagger": cell["dagger"][key], "kap": cell["confidence"]["kap"], "risk": cell["confidence"]["risk"]}
    if cell["geometry_aware"]:
        found["geometry_aware"] = cell["geometry_aware"][key]
    if cell["off_object"]:
        found["off_object"] = cell["off_object"]
    return found


def numbers_row(name: str, cell: dict[str, Any], key: str) -> dict[str, Any]:
    """A row of summary.csv: the headline PCK with its interval, then all averages."""
    lead = cell["overall_keypoint"][key]
    row = {**_named(name), "reference": cell["protocol"]["reference"], "threshold": key}
    row |= {"num_pairs": cell["num_pairs"], "num_keypoints": cell["num_keypoints"]}
    row |= {"pck": lead["mean"], "low": lead["ci95"][0], "high": lead["ci95"][1]}
    for average in pck.AVERAGES:
        for threshold, value in cell[f"overall_{average}"].items():
            column = f"per_{average}_{threshold}"
            row[column] = value["mean"]
            row[f"{column}_low"], row[f"{column}_high"] = value["ci95"]
    for name, found in further(cell, key).items():
        row[name] = found["mean"]
        row[f"{name}_low"], row[f"{name}_high"] = found["ci95"]
    return row
