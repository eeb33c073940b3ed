"""The term that tells left from right, against its definition in numpy."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import a_pair, run_stages

from semcorr import params
from semcorr.datasets.base import Pair
from semcorr.datasets.sides import groups
from semcorr.errors import UserError
from semcorr.geometry import Grid
from semcorr.networks.losses.sides import sides

GRID = Grid(image_size=(70, 84), resized_size=(70, 84), stride=14)
CATS = partial(groups, "spair71k")  # eyes 2, 3; paws 9 to 12


def _pair(source: str, target: str, names: list[str], at: dict[str, dict[str, list[float]]]) -> Pair:
    points = [[at[image_id][name] for name in names] for image_id in (source, target)]
    return a_pair(*points, id=source + target, category="cat", source=source, target=target, keypoint_ids=names)


def test_the_term_against_numpy():
    """Of each keypoint with a twin in its target; a twin counts if any pair of the batch says where it is."""
    rng = np.random.default_rng(0)
    maps = {id_: torch.from_numpy(rng.normal(size=(5, 6, 7))) for id_ in "abc"}
    cells = {id_: {name: rng.integers(0, 5, 2) for name in ("0", "2", "3", "9", "11")} for id_ in "abc"}
    at = {id_: {name: (cell * 14 + 6.5).tolist() for name, cell in one.items()} for id_, one in cells.items()}
    pairs = [
        _pair("a", "b", ["0", "2", "9", "11"], at),  # b shows 3 too, as c says
        _pair("b", "a", ["0", "2"], at),
        _pair("c", "b", ["3"], at),
        _pair("a", "c", ["0", "9"], at),  # c's other paw is not known
    ]
    shown = {"a": {"0", "2", "9", "11"}, "b": {"0", "2", "3", "9", "11"}, "c": {"0", "3", "9"}}
    twins = [{"2", "3"}, {"9", "10", "11", "12"}]

    def unit(id_: str, name: str) -> np.ndarray:
        x, y = cells[id_][name]
        value = maps[id_][y, x].numpy()
        return value / np.linalg.norm(value)

    expected = []
    for pair in pairs:
        for name in pair.keypoint_ids:
            own = [group & shown[pair.target] for group in twins if name in group]
            if not own or len(own[0]) < 2:
                continue
            similar = {other: unit(pair.source, name) @ unit(pair.target, other) / 0.1 for other in own[0]}
            expected.append(np.log(sum(np.exp(value) for value in similar.values())) - similar[name])
    assert len(expected) == 4  # 2, 9 and 11 of a in b, and 3 of c in b
    found = sides({id_: (tensor, GRID) for id_, tensor in maps.items()}, pairs, CATS, 0.1)
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-6)
    assert sides({id_: (tensor, GRID) for id_, tensor in maps.items()}, pairs[3:], CATS, 0.1) is None
    assert sides({id_: (tensor, GRID) for id_, tensor in maps.items()}, pairs, lambda *_: [], 0.1) is None


def test_left_and_right_become_distinct():
    """Two places with the same features drift apart, and each source point prefers its own."""
    generator = torch.Generator().manual_seed(0)
    maps = {id_: torch.randn(5, 6, 16, generator=generator) for id_ in "ab"}
    at = {id_: {"2": [6.5, 6.5], "3": [62.5, 34.5]} for id_ in "ab"}
    for tensor in maps.values():
        tensor[2, 4] = tensor[0, 0] + 0.01 * torch.randn(16, generator=generator)
        tensor.requires_grad_(True)
    pairs = [_pair("a", "b", ["2", "3"], at), _pair("b", "a", ["2", "3"], at)]
    optimizer = torch.optim.Adam(maps.values(), lr=0.05)
    values = []
    for _ in range(60):
        value = sides({id_: (tensor, GRID) for id_, tensor in maps.items()}, pairs, CATS, 0.05)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[0] == pytest.approx(np.log(2), abs=0.1)
    assert values[-1] < 0.01


def test_training_with_the_term(smoke, tmp_path, monkeypatch):
    """The losses of a run contain it; one of next to no weight changes next to nothing."""
    monkeypatch.chdir(tmp_path)
    steps = []
    for weight in (None, 1e-6, 1.0):
        term = weight and {"table": "toy", "weight": weight, "temperature": 0.1}
        values = {**smoke, "grid": {**smoke["grid"], "backbones": ["dinov2_tiny"]}}
        values["tunings"] = {"last1": {**smoke["tunings"]["last1"], "sides": term}}
        job = run_stages(values, "fetch", "weights", "trunk", "finetune").job("finetune", "dinov2_tiny", "last1")
        steps.append(pd.read_csv(job.outputs["steps"])["loss"].to_numpy())
    values["tunings"]["last1"]["sides"] = {"table": "names", "weight": 1.0, "temperature": 0.1}
    with pytest.raises(UserError, match=r"sides\.table: by names, no keypoint of the training set has a twin"):
        run_stages(values, "finetune")
    np.testing.assert_allclose(steps[1], steps[0], rtol=1e-3)
    assert steps[2][0] > steps[0][0] + 0.1
    assert steps[2].mean() > steps[0].mean() + 0.5


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"table": "willow", "weight": 1.0, "temperature": 0.1}, r"sides\.table"),
        ({"table": "toy", "weight": 0, "temperature": 0.1}, r"sides\.weight"),
        ({"table": "toy", "weight": 1.0, "temperature": 0}, r"sides\.temperature"),
        ({"table": "toy"}, r"sides: missing weight, temperature"),
    ],
)
def test_bad_values_are_refused_at_validation(smoke, term, message):
    tunings = {**smoke["tunings"], "last1": {**smoke["tunings"]["last1"], "sides": term}}
    with pytest.raises(UserError, match=message):
        params.validate({**smoke, "tunings": tunings}, "x")
