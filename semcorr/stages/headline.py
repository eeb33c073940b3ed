"""headline: the numbers tracked by git: one small file per cell, which is a row of `dvc metrics show`, and summary.csv.

A separate stage, and the last: DVC neither removes nor restores files tracked by git, so they are rewritten whenever a
cell changes, whether computed or restored.
"""

import pandas as pd

from semcorr import pck
from semcorr.artifacts.files import replacing, write_json
from semcorr.artifacts.provenance import expect, read_result
from semcorr.engine.graph import Job
from semcorr.params import Params
from semcorr.report.tables import headline_row, numbers_row


def headline(job: Job, params: Params) -> str:
    """Write one file per cell, and a table of all cells."""
    cells = {}
    for role, path in job.inputs.items():
        expect(path, job.expects[role])
        if role.startswith("evaluate cell "):
            cells[role.split(" ")[2]] = read_result(path)
    key = pck.threshold_key(params.evaluate.headline)
    with replacing(job.outputs["headline"]) as folder:
        for name, cell in cells.items():
            backbone, weights, dataset, rule = name.split("/")
            write_json(folder / dataset / backbone / weights / f"{rule}.json", headline_row(cell, key))
    with replacing(job.outputs["csv"]) as partial:
        pd.DataFrame([numbers_row(name, cell, key) for name, cell in cells.items()]).to_csv(partial, index=False)
    return f"{len(cells)} cells: {job.outputs['headline']}, {job.outputs['csv']}"
