"""report: all cells as tables (JSON, Markdown, LaTeX, DVC's plots) and as one self-contained HTML page."""

from typing import Any

import pandas as pd

from semcorr.artifacts.files import replacing, write_json, write_text
from semcorr.artifacts.provenance import expect, provenance, read_result, read_table
from semcorr.engine.graph import Job
from semcorr.params import Params
from semcorr.report.page import page
from semcorr.report.tables import categories, curves, latex, leaderboard, markdown, summary


def report(job: Job, params: Params) -> str:
    """Write the tables and the page."""
    results: dict[str, dict[str, Any]] = {"cell": {}, "pairs": {}, "gallery": {}, "curve": {}}
    for role, path in job.inputs.items():
        expect(path, job.expects[role])
        _, kind, name = role.split(" ")
        results[kind][name] = read_table(path).to_pandas() if kind == "pairs" else read_result(path)
    cells = results["cell"]
    boards = {dataset: leaderboard(cells, results["pairs"], dataset, params) for dataset in params.grid.datasets}
    write_json(job.outputs["summary"], summary(cells))
    tables = {"curves": curves(cells), "categories": categories(cells, params)}
    for role, rows in tables.items():
        with replacing(job.outputs[role]) as partial:
            pd.DataFrame(rows).to_csv(partial, index=False)
    write_text(job.outputs["markdown"], markdown(boards, cells, params))
    write_text(job.outputs["latex"], latex(boards, cells, params))
    write_text(
        job.outputs["html"],
        page(boards, cells, results["gallery"], list(results["curve"].values()), params, provenance(job)),
    )
    return f"{len(cells)} cells: {job.outputs['markdown']}, {job.outputs['html']}"
