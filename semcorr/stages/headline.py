"""headline: the numbers that git keeps: a small file per cell, a row of `dvc metrics show`, and summary.csv.

A stage of its own, and the last: DVC neither removes nor restores what git keeps, so it is written whenever a cell is
another one, be it computed or restored.
"""

from typing import Any

import pandas as pd

from semcorr import pck
from semcorr.artifacts.files import replacing, write_json
from semcorr.artifacts.provenance import expect, read_result
from semcorr.engine.graph import STAGES, Job
from semcorr.params import Params

AXES = STAGES["evaluate"].axes


def headline(job: Job, params: Params) -> str:
    """Write a file per cell, and the table of all of them."""
    cells = {}
    for role, path in job.inputs.items():
        expect(path, job.expects[role])
        if role.startswith("evaluate cell "):
            cells[role.split(" ")[2]] = read_result(path)
    key = pck.threshold_key(pck.headline(params.evaluate.thresholds))
    with replacing(job.outputs["headline"]) as folder:
        for name, cell in cells.items():
            backbone, weights, dataset, rule = name.split("/")
            write_json(folder / dataset / backbone / weights / f"{rule}.json", _row(cell, key))
    with replacing(job.outputs["csv"]) as partial:
        pd.DataFrame([_numbers(name, cell, key) for name, cell in cells.items()]).to_csv(partial, index=False)
    return f"{len(cells)} cells: {job.outputs['headline']}, {job.outputs['csv']}"


def _row(cell: dict[str, Any], key: str) -> dict[str, float]:
    """A row of `dvc metrics show`, keys in lower case, which sort as they should.

    Per keypoint and against the first reference, where a key does not say `per_image` or `reference_<another>`.
    """
    row = {threshold.lower(): value["mean"] for threshold, value in cell["overall_keypoint"].items()}
    row[f"{key.lower()}_per_image"] = cell["overall_image"][key]["mean"]
    for other in list(cell["references"])[1:]:
        row[f"{key.lower()}_reference_{other}"] = cell["references"][other]["overall_keypoint"][key]["mean"]
    return row


def _numbers(name: str, cell: dict[str, Any], key: str) -> dict[str, Any]:
    """A row of summary.csv: the headline with its interval, then everything."""
    values = dict(zip(AXES, name.split("/"), strict=True))
    lead = cell["overall_keypoint"][key]
    row = {"name": name, **values, "cell": f"{values['backbone']} {values['weights']} {values['rule']}"}
    row |= {"reference": cell["protocol"]["reference"], "threshold": key}
    row |= {"num_pairs": cell["num_pairs"], "num_keypoints": cell["num_keypoints"]}
    row |= {"pck": lead["mean"], "low": lead["ci95"][0], "high": lead["ci95"][1]}
    for average in pck.AVERAGES:
        for threshold, value in cell[f"overall_{average}"].items():
            column = f"per_{average}_{threshold}"
            row[column] = value["mean"]
            row[f"{column}_low"], row[f"{column}_high"] = value["ci95"]
    return row
