"""Compare two cells on the same pairs by a paired bootstrap, overall and per category.

A cell is named by any of its parts, backbone, weights, dataset and rule, in any order: `last2`, `softargmax/last2` or
`"dinov2_s14 last2 softargmax"`. What one side leaves out is as on the other; what both leave out takes each value of
the grid in turn. With a git revision in front, as in `HEAD~1:last2`, the parts are those of that revision's params.yaml
and the matches come from DVC's cache or remote; `HEAD~1:` alone is the other side's cell at that revision.
"""

import io
import re
from dataclasses import dataclass
from itertools import groupby, permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from semcorr import pck
from semcorr.artifacts.provenance import expect, read_table
from semcorr.datasets import hold_outs
from semcorr.engine.graph import MATCHES, STAGES, Graph, names_on
from semcorr.errors import UserError, reason
from semcorr.params import PARAMS_FILE, Evaluate, Params, read_text
from semcorr.report.tables import SIGNIFICANT

KEY = ["pair", "keypoint"]
AXES = tuple(STAGES["match"].axes)
FULL = "/".join(f"<{axis}>" for axis in AXES)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a comparison.

    Attributes:
        text: as given.
        revision: its git revision; empty for the workspace.
        values: its params.yaml.
        names: axis -> the names in its grid.
        given: axis -> the name that was given.
    """

    text: str
    revision: str
    values: dict[str, Any]
    names: dict[str, list[str]]
    given: dict[str, str]

    def cell(self, names: tuple[str, ...]) -> str:
        """A cell's full name, with the revision in front."""
        return ":".join(filter(None, [self.revision, "/".join(names)]))

    def references(self, dataset: str, settings: Evaluate) -> list[str]:
        """What a threshold multiplies: by today's settings, or by its own where they lack the dataset's format."""
        spec = self.values["datasets"][dataset]["format"]
        return {**self.values["evaluate"]["references"], **settings.references}[spec]


def compare(first: str, second: str, params: Params) -> list[dict[str, Any]]:
    """Rows for `all`, what is held out or not, and each category, at each threshold.

    Each has the PCK of both, and the difference with its 95 % interval and p.
    Where the two names fit several pairs of cells, the rows of one pair follow those of another.

    Raises:
        UserError: there is no such cell or revision, or the two do not have the same keypoints.
    """
    left, right = _side(first, params), _side(second, params)
    rows = []
    for ours, theirs in _pairs(left, right):
        names = left.cell(ours), right.cell(theirs)
        reference = left.references(ours[AXES.index("dataset")], params.evaluate)[0]
        cells = dict(zip(("first_cell", "second_cell"), names, strict=True))
        rows += [cells | row for row in _rows(*names, reference, params)]
    return rows


def _rows(first: str, second: str, reference: str, params: Params) -> list[dict[str, Any]]:
    """The rows of one pair of cells."""
    settings = params.evaluate
    left, right = read(first, params), read(second, params)
    if len(left) != len(right) or not left[[*KEY, "true_x", "true_y"]].equals(right[[*KEY, "true_x", "true_y"]]):
        raise UserError(f"{first} and {second} do not have the same keypoints, so they cannot be compared")
    correct = [
        pck.is_correct(*pck.errors(matches, reference, name), settings.thresholds)
        for name, matches in ((first, left), (second, right))
    ]
    parts_of = {"all": np.full(len(left), True)}
    if params.hold_outs is not None:
        group = hold_outs.groups(left["category"].tolist(), left["keypoint"].tolist(), params.hold_outs)
        held_out = {name: group == number for number, name in enumerate(hold_outs.GROUPS)}
        parts_of |= {name: chosen for name, chosen in held_out.items() if chosen.any()}
    parts_of |= {name: (left["category"] == name).to_numpy() for name in sorted(left["category"].unique())}
    rows = []
    for name, chosen in parts_of.items():
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


def _side(text: str, params: Params) -> Side:
    """What one side says, held against the params.yaml that it is about."""
    revision, _, parts = text.rpartition(":")
    words = re.findall(r"[^/\s]+", parts)
    if not words and not revision:
        raise UserError("a cell without a name: give at least one of its parts, such as last2")
    file = f"{revision}:{PARAMS_FILE}"
    values = read_text(_at(revision, PARAMS_FILE).decode(), Path(file)) if revision else params.to_dict()
    try:
        names = {axis: names_on(values, key) for axis, key in STAGES["match"].axes.items()}
    except TypeError:
        names = {}
    if not names or not all(names.values()):
        raise UserError(f"{file}: has no grid of backbones, weights, datasets and rules. Give another one")
    return Side(text=text, revision=revision, values=values, names=names, given=_given(words, names, text))


def _given(words: list[str], names: dict[str, list[str]], text: str) -> dict[str, str]:
    """The axis of each word.

    Raises:
        UserError: a word is no name in the grid, or there is more than one way to read the words.
    """
    fits: list[dict[str, str]] = []
    for axes in permutations(AXES, len(words)):
        reading = dict(zip(axes, words, strict=True))
        if all(word in names[axis] for axis, word in reading.items()) and reading not in fits:
            fits.append(reading)
    if len(fits) == 1 or (fits and list(fits[0]) == list(AXES)):  # in the axes' own order, nothing is ambiguous
        return fits[0]
    known = "".join(f"\n  {axis}: {', '.join(values)}" for axis, values in names.items())
    unknown = [word for word in words if not any(word in values for values in names.values())]
    if unknown:
        raise UserError(f"{text}: {', '.join(unknown)}: no such part of a cell. Allowed are names of the grid:{known}")
    if not fits:
        twice = [axis for axis, values in names.items() if sum(word in values for word in words) > 1]
        raise UserError(f"{text}: more than one {' and '.join(twice)}. Allowed is one name of each:{known}")
    readings = "".join("\n  " + ", ".join(f"{axis} {word}" for axis, word in fit.items()) for fit in fits)
    raise UserError(f"{text}: can be read in several ways. Give all four parts, {FULL}. It could be:{readings}")


def _pairs(left: Side, right: Side) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The pairs of cells to compare, each as the values of the axes.

    Raises:
        UserError: a side lacks what the other gives, or both turn out to be the same cell.
    """
    choices = [_choices(axis, left, right) for axis in AXES]
    pairs = [
        (tuple(first for first, _ in chosen), tuple(second for _, second in chosen)) for chosen in product(*choices)
    ]
    ours, theirs = pairs[0]
    if (left.revision, ours) == (right.revision, theirs) and left.given != right.given:
        raise UserError(f"{left.text} and {right.text}: both are {left.cell(ours)}. Name what differs on both sides")
    return pairs


def _choices(axis: str, left: Side, right: Side) -> list[tuple[str, str]]:
    """What the two sides may have on an axis."""
    ours, theirs = left.given.get(axis), right.given.get(axis)
    if ours and theirs:
        return [(ours, theirs)]
    if name := ours or theirs:
        other = right if ours else left
        if name not in other.names[axis]:
            known = ", ".join(other.names[axis])
            raise UserError(f"{other.text}: has no {axis} {name} to compare with. Add one of its own: {known}")
        return [(name, name)]
    common = [name for name in left.names[axis] if name in right.names[axis]]
    if not common and len(left.names[axis]) == len(right.names[axis]) == 1:  # renamed
        return [(left.names[axis][0], right.names[axis][0])]
    if not common:
        both = "\n".join(f"  {side.text}: {', '.join(side.names[axis])}" for side in (left, right))
        raise UserError(f"{left.text} and {right.text}: have no {axis} in common. Add one to each:\n{both}")
    return [(name, name) for name in common]


def read(name: str, params: Params) -> pd.DataFrame:
    """Read a cell's matches from the workspace or from a git revision."""
    revision, _, cell = name.rpartition(":")
    if revision:
        path = Path(MATCHES.format(**dict(zip(AXES, cell.split("/"), strict=True))))
        return _sorted(pd.read_parquet(io.BytesIO(_at(revision, path))))
    job = Graph(params).job("match", *cell.split("/"))
    path = job.outputs["matches"]
    if not path.exists():
        raise UserError(f"{path}: not made yet. Run: dvc repro (or snakemake --cores all)")
    expect(path, job.fingerprint)
    return _sorted(read_table(path).to_pandas())


def _at(revision: str, path: Path) -> bytes:
    """The content of a file at a git revision, kept by git or by DVC."""
    import dvc.api
    from dvc.exceptions import DvcException
    from dvc.scm import RevError
    from scmrepo.exceptions import SCMError

    try:
        return dvc.api.read(str(path), rev=revision, mode="rb")
    except RevError:
        raise UserError(f"{revision}: no such git revision. Allowed: a commit, branch, tag or DVC experiment") from None
    except (DvcException, SCMError, FileNotFoundError) as error:
        why = f"{revision} has no {path}, or DVC's cache does not hold it ({reason(error)})"
        raise UserError(f"{why}. Try: dvc fetch --all-commits") from None


def _sorted(matches: pd.DataFrame) -> pd.DataFrame:
    return matches.sort_values(KEY, kind="stable").reset_index(drop=True)


def table(rows: list[dict[str, Any]], threshold: str) -> str:
    """The rows of one threshold as text, in percent: a table for each pair of cells, and what the star means."""
    shown = [row for row in rows if row["threshold"] == threshold]
    parts = [
        "\n".join(_table(*cells, list(group), threshold))
        for cells, group in groupby(shown, key=lambda row: (row["first_cell"], row["second_cell"]))
    ]
    note = f"* significant at {100 * SIGNIFICANT:.0f} %, each row by itself. Difference: second column minus first."
    return "\n\n".join([*parts, note])


def _table(first: str, second: str, rows: list[dict[str, Any]], threshold: str) -> list[str]:
    """The table of one pair of cells, with a heading: what they share."""
    shared, left, right = _labels(first, second)
    wide = max(16, *(len(row["category"]) for row in rows))
    columns = [max(7, len(name)) for name in (left, right)]
    heads = f"{left:>{columns[0]}} {right:>{columns[1]}}"
    lines = [f"{shared}: {left} against {right}" if shared else f"{left} against {right}"]
    lines.append(f"{threshold:<{wide}} {heads} {'difference':>11}   95 % interval       p")
    for row in rows:
        low, high = (100 * bound for bound in row["ci95"])
        star = "*" if row["p"] < SIGNIFICANT else " "
        lines.append(
            f"{row['category']:<{wide}} {100 * row['first']:{columns[0]}.1f} {100 * row['second']:{columns[1]}.1f} "
            f"{100 * row['difference']:+10.1f}{star}   {low:+6.1f} to {high:+6.1f}   {row['p']:.3f}"
        )
    return lines


def _labels(first: str, second: str) -> tuple[str, str, str]:
    """What two cells share, and what tells each apart: the parts that differ, and the revision if that does.

    >>> _labels("b/frozen/d/argmax", "b/last2/d/argmax")
    ('b d argmax', 'frozen', 'last2')
    >>> _labels("HEAD:b/frozen/d/argmax", "b/frozen/d/argmax")
    ('b frozen d argmax', 'HEAD', 'workspace')
    """
    names = [name.rpartition(":") for name in (first, second)]
    revisions = [revision or "workspace" for revision, _, _ in names]
    parts = list(zip(*(cell.split("/") for _, _, cell in names), strict=True))
    shared = " ".join(ours for ours, theirs in parts if ours == theirs)
    apart = ["/".join(pair[side] for pair in parts if pair[0] != pair[1]) for side in (0, 1)]
    if revisions[0] != revisions[1]:
        apart = [":".join(filter(None, words)) for words in zip(revisions, apart, strict=True)]
    same = parts[AXES.index("weights")]  # a cell against itself
    return shared, apart[0] or same[0], apart[1] or same[1]


def method(settings: Evaluate) -> str:
    """How the interval and p were made."""
    return (
        f"95 % interval and p of the difference: paired bootstrap over image pairs, {settings.bootstrap:,} samples, "
        f"seed {settings.seed}."
    )
