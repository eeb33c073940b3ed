"""report: all cells as tables (JSON, Markdown, DVC's plots) and as one self-contained HTML page."""

from typing import Any

import pandas as pd

from semcorr import pck
from semcorr.artifacts.files import replacing, write_json, write_text
from semcorr.artifacts.provenance import expect, provenance, read_result, read_table
from semcorr.engine.graph import STAGES, Job
from semcorr.errors import UserError
from semcorr.params import Params
from semcorr.report.page import page

SIGNIFICANT = 0.05
AXES = STAGES["evaluate"].axes


def report(job: Job, params: Params) -> str:
    """Write the tables and the page."""
    found: dict[str, dict[str, Any]] = {"cell": {}, "pairs": {}, "gallery": {}}
    for role, path in job.inputs.items():
        expect(path, job.expects[role])
        _, kind, name = role.split(" ")
        found[kind][name] = read_table(path).to_pandas() if kind == "pairs" else read_result(path)
    cells = found["cell"]
    boards = {dataset: leaderboard(cells, found["pairs"], dataset, params) for dataset in params.grid.datasets}
    write_json(job.outputs["summary"], _summary(cells))
    tables = {"curves": _curves(cells), "categories": _categories(cells, params)}
    for role, rows in tables.items():
        with replacing(job.outputs[role]) as partial:
            pd.DataFrame(rows).to_csv(partial, index=False)
    write_text(job.outputs["markdown"], _markdown(boards, cells, params))
    write_text(job.outputs["html"], page(boards, cells, found["gallery"], params, provenance(job)))
    return f"{len(cells)} cells: {job.outputs['markdown']}, {job.outputs['html']}"


def headline(params: Params) -> str:
    """The key of the threshold that tables lead with."""
    return pck.threshold_key(pck.headline(params.evaluate.thresholds))


def leaderboard(
    cells: dict[str, Any], pairs: dict[str, pd.DataFrame], dataset: str, params: Params
) -> list[dict[str, Any]]:
    """The rows of one dataset, best first, each compared with the best by a paired bootstrap.

    Returns:
        Rows with `name`, the axes' values, `values` (percent at each threshold), `interval`, `image`, `category`,
        `others` (other references), and `behind`: difference to the best, its interval and p, None for the best
        itself. `best` is True for the first row, and for those that are not significantly worse.
    """
    key = headline(params)
    rows = []
    for name, cell in cells.items():
        values = dict(zip(AXES, name.split("/"), strict=True))
        if values["dataset"] != dataset:
            continue
        overall = cell["overall_keypoint"]
        others = list(cell["references"])[1:]
        rows.append(
            {
                "name": name,
                **values,
                "values": [100 * overall[one]["mean"] for one in overall],
                "headline": 100 * overall[key]["mean"],
                "interval": [100 * bound for bound in overall[key]["ci95"]],
                "image": 100 * cell["overall_image"][key]["mean"],
                "category": 100 * cell["overall_category"][key]["mean"],
                "others": {other: 100 * cell["references"][other]["overall_keypoint"][key]["mean"] for other in others},
            }
        )
    rows.sort(key=lambda row: -row["headline"])
    best = pairs[rows[0]["name"]]
    settings = params.evaluate
    for row in rows:
        table = pairs[row["name"]]
        if not table[["pair", "num_keypoints"]].equals(best[["pair", "num_keypoints"]]):
            raise UserError(f"{row['name']} and {rows[0]['name']} were not scored on the same pairs")
        hits = [one[[key]].to_numpy(float) for one in (best, table)]
        counts = best["num_keypoints"].to_numpy(float)
        found = pck.compare(*hits, counts, samples=settings.bootstrap, seed=settings.seed)
        row["behind"] = None
        if row is not rows[0]:
            row["behind"] = {
                "difference": 100 * float(found.mean[0]),
                "interval": [100 * float(found.low[0]), 100 * float(found.high[0])],
                "p": float(found.p[0]),
            }
        row["best"] = row is rows[0] or row["behind"]["p"] >= SIGNIFICANT
    return rows


def _summary(cells: dict[str, Any]) -> dict[str, Any]:
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
    """A cell's name, its axes, and what it is called beside its dataset."""
    values = dict(zip(AXES, name.split("/"), strict=True))
    return {"name": name, **values, "cell": f"{values['backbone']} {values['weights']} {values['rule']}"}


def _curves(cells: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of curves.csv: PCK over thresholds."""
    rows = []
    for name, cell in cells.items():
        known = _named(name)
        for threshold, value in zip(
            cell["error_distribution"]["threshold"], cell["error_distribution"]["pck"], strict=True
        ):
            rows.append({"dataset": known["dataset"], "cell": known["cell"], "threshold": threshold, "pck": value})
    return rows


def _categories(cells: dict[str, Any], params: Params) -> list[dict[str, Any]]:
    """The rows of categories.csv: the headline of each category."""
    key = headline(params)
    return [
        {"dataset": known["dataset"], "cell": known["cell"], "category": category, "pck": values[key]}
        for known, cell in ((_named(name), cell) for name, cell in cells.items())
        for category, values in cell["per_category_keypoint"].items()
    ]


def _markdown(boards: dict[str, list[dict[str, Any]]], cells: dict[str, Any], params: Params) -> str:
    """One table per dataset, in the order of the grid."""
    key = headline(params)
    lead = params.evaluate.thresholds.index(pck.headline(params.evaluate.thresholds))
    parts = []
    for dataset, board in boards.items():
        example = cells[board[0]["name"]]
        names = list(cells)
        rows = sorted(board, key=lambda row: names.index(row["name"]))
        heads = ["backbone", "weights", "rule", *(pck.threshold_key(t) for t in params.evaluate.thresholds)]
        heads += [f"95 % interval of {key}", f"{key} per image", f"{key} per category"]
        heads += [f"{key}, reference {name}" for name in rows[0]["others"]]
        lines = [
            f"### {dataset}",
            "",
            f"PCK in percent, per keypoint unless named otherwise; reference {example['protocol']['reference']}; "
            f"{example['num_pairs']:,} pairs, {example['num_keypoints']:,} keypoints. Bold: the best, and those not "
            f"significantly worse.",
            "",
            "| " + " | ".join(heads) + " |",
            "|" + "---|" * 3 + "---:|" * (len(heads) - 3),
        ]
        for row in rows:
            values = [f"{value:.1f}" for value in row["values"]]
            values[lead] = f"**{values[lead]}**" if row["best"] else values[lead]
            values += ["{:.1f} to {:.1f}".format(*row["interval"]), f"{row['image']:.1f}", f"{row['category']:.1f}"]
            values += [f"{value:.1f}" for value in row["others"].values()]
            lines.append("| " + " | ".join([row["backbone"], row["weights"], row["rule"], *values]) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
