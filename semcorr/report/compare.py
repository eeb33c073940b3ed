"""Compare two cells on the same pairs by a paired bootstrap, overall and per category.

A cell is `<backbone>/<weights>/<dataset>/<rule>` of the current experiment. With a git revision in front, as in
`HEAD~1:dinov2_s14/last2/toy_willow/argmax`, its matches come from DVC's cache or remote.
"""

import io
from typing import Any

import numpy as np
import pandas as pd

from semcorr import pck
from semcorr.artifacts.provenance import expect, read_table
from semcorr.engine import graph
from semcorr.errors import UserError
from semcorr.params import Params

KEY = ["pair", "keypoint"]


def compare(first: str, second: str, params: Params) -> list[dict[str, Any]]:
    """Rows for `all` and each category: PCK of both, the difference with its 95 % interval, and p, at each threshold.

    Raises:
        UserError: there is no such cell or revision, or the two do not have the same keypoints.
    """
    settings = params.evaluate
    left, right = read(first, params), read(second, params)
    if len(left) != len(right) or not left[[*KEY, "true_x", "true_y"]].equals(right[[*KEY, "true_x", "true_y"]]):
        raise UserError(f"{first} and {second} do not have the same keypoints, so they cannot be compared")
    dataset = first.rpartition(":")[2].split("/")[2]
    reference = settings.references[params.datasets[dataset].format][0]
    correct = [
        pck.is_correct(*pck.errors(matches, reference, name), settings.thresholds)
        for name, matches in ((first, left), (second, right))
    ]
    rows = []
    for name in ["all", *sorted(left["category"].unique())]:
        chosen = np.full(len(left), True) if name == "all" else (left["category"] == name).to_numpy()
        pair = pd.factorize(left["pair"][chosen])[0]
        parts = [values[chosen] for values in correct]
        (first_hits, counts), (second_hits, _) = (pck.by_pair(part, pair) for part in parts)
        compared = pck.compare(first_hits, second_hits, counts, samples=settings.bootstrap, seed=settings.seed)
        for index, threshold in enumerate(settings.thresholds):
            rows.append(
                {
                    "category": name,
                    "threshold": pck.threshold_key(threshold),
                    "first": float(parts[0][:, index].mean()),
                    "second": float(parts[1][:, index].mean()),
                    "difference": float(compared.mean[index]),
                    "ci95": [float(compared.low[index]), float(compared.high[index])],
                    "p": float(compared.p[index]),
                }
            )
    return rows


def read(name: str, params: Params) -> pd.DataFrame:
    """Read a cell's matches from the workspace or from a git revision."""
    revision, _, cell = name.rpartition(":")
    job = graph.Graph(params).job("match", *cell.split("/"))
    path = job.outputs["matches"]
    if not revision:
        if not path.exists():
            raise UserError(f"{path}: not made yet. Run: dvc repro (or snakemake --cores all)")
        expect(path, job.fingerprint)
        return _sorted(read_table(path).to_pandas())
    import dvc.api
    from dvc.exceptions import DvcException
    from scmrepo.exceptions import SCMError

    try:
        content = dvc.api.read(str(path), rev=revision, mode="rb")
    except (DvcException, SCMError, FileNotFoundError) as error:
        why = f"{revision} has no {path}, or DVC's cache does not hold it ({error})"
        raise UserError(f"{name}: {why}. Try: dvc fetch --all-commits") from None
    return _sorted(pd.read_parquet(io.BytesIO(content)))


def _sorted(matches: pd.DataFrame) -> pd.DataFrame:
    return matches.sort_values(KEY, kind="stable").reset_index(drop=True)


def table(rows: list[dict[str, Any]], threshold: str) -> str:
    """The rows of one threshold as text, in percent; a star marks differences that are significant at 5 %."""
    lines = [f"{threshold:<16} {'first':>7} {'second':>7} {'difference':>11}   95 % interval       p"]
    for row in rows:
        if row["threshold"] == threshold:
            low, high = (100 * bound for bound in row["ci95"])
            star = "*" if row["p"] < 0.05 else " "
            lines.append(
                f"{row['category']:<16} {100 * row['first']:7.1f} {100 * row['second']:7.1f} "
                f"{100 * row['difference']:+10.1f}{star}   {low:+6.1f} to {high:+6.1f}   {row['p']:.3f}"
            )
    return "\n".join(lines)
