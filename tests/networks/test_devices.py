"""What runs on a GPU, on a device that is only pretended: it computes as the CPU does, and refuses what CUDA refuses.

Its tensors say that they are elsewhere. An operation that mixes them with the CPU's raises an error, as CUDA's does, so
a tensor that the code forgets to move, or makes on the CPU unasked, is found on a machine without a GPU. What mixed
precision and recomputed activations change is tested on the CPU itself.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import a_pair, run_stages, small
from PIL import Image as PillowImage
from pydantic import TypeAdapter
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from semcorr import cli, matching, params
from semcorr.artifacts.files import write_json
from semcorr.engine import graph
from semcorr.geometry import Grid
from semcorr.networks import encode, runtime, trainer, training, views
from semcorr.networks.backbones import build
from semcorr.networks.backbones.weights import read_checkpoint
from semcorr.networks.fusion import fused
from semcorr.networks.keeping import anchor, confident
from semcorr.networks.losses.sides import sides
from semcorr.readouts import readout
from semcorr.tensors import normalise

# A type of device that this torch knows and no machine has; torch runs its backward passes on the CPU's thread.
ELSEWHERE = torch.device("lazy")
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}
COPYING = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


class Far(Tensor):
    """A tensor that says it is elsewhere; its values are in `near`, a tensor of the CPU."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> "Far":
        layout = {"strides": near.stride(), "storage_offset": near.storage_offset(), "dtype": near.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, near.shape, device=ELSEWHERE, **layout)
        made.near = near
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _compute(operation, args, kwargs or {})

    def __reduce_ex__(self, protocol: int) -> Any:
        """Saved as its values are; what reads it says where they go."""
        return self.near.__reduce_ex__(protocol)


def _compute(operation: Any, args: tuple, kwargs: dict) -> Any:
    """Run one operation of torch on the values, if all that it takes is in one place; the result is in that place."""
    given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    far = any(isinstance(one, Far) for one in given)
    if far and operation not in COPYING:
        _require_one_place(operation, args, given)
    if asked := [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.device)]:
        far = asked[0].type == ELSEWHERE.type
        if far and kwargs.get("generator") is not None:
            raise RuntimeError(f"{operation}: the generator is on the CPU")
    near = tree_map(_near, (args, kwargs))
    result = operation(*near[0], **near[1])
    changed = operation._schema.returns[:1]
    if changed and changed[0].alias_info is not None and changed[0].alias_info.is_write:
        return kwargs.get("out", args[0])
    with torch.inference_mode(False):  # in which a view of what was made outside would have to be made outside too
        return tree_map(lambda one: Far(one) if far and isinstance(one, Tensor) else one, result)


def _near(one: Any) -> Any:
    """The values of a tensor, and the CPU for any device."""
    return one.near if isinstance(one, Far) else torch.device("cpu") if isinstance(one, torch.device) else one


def _require_one_place(operation: Any, args: tuple, given: list[Tensor]) -> None:
    """CUDA's rules: indices may be on the CPU, and single numbers where the operation is one of each element."""
    if operation in INDEXING and isinstance(args[0], Far):
        given = [one for one in tree_leaves(args[2:]) if isinstance(one, Tensor) and one.dim()]
    elif torch.Tag.pointwise in operation.tags:
        given = [one for one in given if one.dim()]
    if any(not isinstance(one, Far) for one in given):
        raise RuntimeError(f"{operation}: expected all tensors to be on the same device")


class Pretended(TorchDispatchMode):
    """Within it, what is made elsewhere or moved there becomes `Far`."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _compute(operation, args, kwargs or {})


@contextlib.contextmanager
def _pretended() -> Iterator[torch.device]:
    """The device; torch makes what it is to hold on the CPU first, and moves it."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with Pretended():
            yield ELSEWHERE
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


@pytest.fixture
def elsewhere(monkeypatch) -> Iterator[torch.device]:
    """The pretended device, where torch knows no mixed precision."""
    real = torch.autocast

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if device_type == ELSEWHERE.type else real(device_type, *args, **kwargs)

    monkeypatch.setattr(torch, "autocast", autocast)
    with _pretended() as device:
        yield device


def test_the_pretended_device_refuses_what_cuda_does(elsewhere):
    here, there = torch.arange(6.0).view(2, 3), torch.arange(6.0, device=elsewhere).view(2, 3)
    assert (here.device.type, there.device, there.new_tensor([1, 2]).device) == ("cpu", elsewhere, elsewhere)
    for mixed in (
        lambda: here + there,
        lambda: there @ here.T,
        lambda: torch.cat([there, here]),
        lambda: torch.stack([there[0, 0], here[0, 0]]),
        lambda: there.gather(1, torch.zeros(2, 1, dtype=torch.long)),
        lambda: there.masked_fill(here > 1, 0.0),
        lambda: here[there.long()],
        lambda: there.add_(here),
        lambda: torch.randn(3, device=elsewhere, generator=torch.Generator()),
        there.numpy,
    ):
        with pytest.raises((RuntimeError, IndexError)):
            mixed()
    assert (there + here[0, 1]).device == elsewhere  # one number
    assert there[torch.tensor([1])].device == elsewhere  # an index
    there[torch.tensor([0])] = there[1].clone()
    assert there.cpu().tolist() == [[3.0, 4.0, 5.0]] * 2
    leaf = there.detach().requires_grad_()
    (leaf * leaf).sum().backward()
    assert leaf.grad.device == elsewhere
    assert leaf.grad.cpu().tolist() == [[6.0, 8.0, 10.0]] * 2


CATEGORIES = ["bird", "person"]
LOSSES = {
    "gaussian_ce": {"name": "gaussian_ce", "temperature": 0.05, "sigma_cells": {"from": 2.0, "to": 1.0}},
    "contrastive": {"name": "contrastive", "temperature": 0.07, "negatives": 8},
    "contrastive, all": {"name": "contrastive", "temperature": 0.07, "negatives": "all"},
    "cosine": {"name": "cosine"},
    "l2": {"name": "l2"},
}
END_POINT = {"weight": 0.5, "temperature": 0.05}
DISTIL = {"weight": 0.5, "after": 0.0, "pairs": 2, "points": 16, "confidence": -1}
GRID = Grid(image_size=(84, 112), resized_size=(84, 112), stride=14)


def _tuning(smoke: dict, **changes: Any) -> params.Tuning:
    return params.Tuning.model_validate(smoke["tunings"]["last1"] | changes)


def _maps(count: int = 2, channels: int = 8) -> list[Tensor]:
    return [torch.randn(*GRID.shape, channels, generator=torch.Generator().manual_seed(n)) for n in range(count)]


def _leaves(maps: list[Tensor], device: torch.device | str) -> dict[str, tuple[Tensor, Grid]]:
    """Maps on a device, as leaves that get gradients, by the names of a pair's images."""
    return {name: (one.to(device).requires_grad_(), GRID) for name, one in zip("ab", maps, strict=True)}


def _on_both(elsewhere: torch.device, value: Callable[[dict[str, tuple[Tensor, Grid]]], Tensor]) -> None:
    """A value and its gradients are the same on both devices."""
    found = []
    for device in ("cpu", elsewhere):
        maps = _leaves(_maps(), device)
        result = value(maps)
        assert result.device == torch.device(device)
        result.backward()
        found.append([result.detach().cpu(), *(leaf.grad.cpu() for leaf, _ in maps.values() if leaf.grad is not None)])
    assert len(found[0]) > 1
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one)


PAIR = a_pair([[10.0, 20.0], [60.0, 70.0]], [[30.0, 40.0], [90.0, 50.0]], source_bbox=[0.0, 0.0, 99.0, 80.0])


@pytest.mark.parametrize("name", LOSSES)
def test_losses(smoke, elsewhere, name):
    tuning = _tuning(smoke, loss=LOSSES[name], end_point=END_POINT)
    batch = training.Batch(ids=["a", "b"], pairs=[PAIR], seed=0)
    _on_both(elsewhere, lambda maps: training.loss(maps, batch, tuning, progress=0.5))


def test_terms_beside_the_loss(elsewhere):
    """Sides, the pull towards the frozen features, and matches that the network is sure of."""

    def alike(*_: object) -> list[frozenset[str]]:
        return [frozenset("01")]

    _on_both(elsewhere, lambda maps: sides(maps, [PAIR], alike, 0.05))
    _on_both(elsewhere, lambda maps: anchor({"a": maps["a"][0]}, {"a": maps["b"][0]}))
    settings = params.Distil.model_validate(DISTIL)
    here, there = (
        confident({name: (leaf.detach(), grid) for name, (leaf, grid) in maps.items()}, [PAIR], settings, seed=0)
        for maps in (_leaves(_maps(), "cpu"), _leaves(_maps(), elsewhere))
    )
    assert here == there != []


RULES = {
    "argmax": {},
    "softargmax": {"window": 3, "temperature": 0.04},
    "kernel_softargmax": {"sigma_cells": 2.0, "temperature": 0.04},
}


@pytest.mark.parametrize("name", RULES)
def test_matching(elsewhere, name):
    """Every readout, both samplings, with and without a part that is searched."""
    adapter, points = TypeAdapter(params.Rule), np.array([[10.0, 20.0], [60.0, 70.0]])
    part = np.arange(np.prod(GRID.shape)).reshape(GRID.shape) % 2 == 0
    for sampling, searched in (("bilinear", None), ("nearest", part)):
        search = "image" if searched is None else "object"
        rule = adapter.validate_python({"readout": name, "sampling": sampling, "search": search, **RULES[name]})
        found = []
        for device in ("cpu", elsewhere):
            a, b = ((normalise(one.to(device)), GRID) for one in _maps())
            found.append(matching.match_points(points, a, b, sampling, readout(rule), searched))
            stored = {"a": (a[0].half(), GRID), "b": (b[0].half(), GRID)}
            asked, allowed = [("a", "b", points), ("b", "a", points)], searched if searched is None else lambda *_: part
            pairs = matching.match_pairs(asked, stored.__getitem__, sampling, readout(rule), searched=allowed)
            found[-1] += tuple(array for pair in pairs for array in pair)
        for one, other in zip(*found, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


def test_features_that_are_joined(elsewhere):
    """A mirrored view at another size, and those of two networks."""
    coarse = Grid(image_size=GRID.image_size, resized_size=(42, 56), stride=14)
    found = []
    for device in ("cpu", elsewhere):
        fine, small_ = _maps()[0].to(device), _maps()[1][:3, :4].to(device)
        one, other = views.Seen(fine, GRID, mirrored=False), views.Seen(small_, coarse, mirrored=True)
        found.append([views.joined([one, other])[0].cpu(), fused(one, other, 0.3)[0].cpu()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one)


@pytest.mark.parametrize("name", ["dinov2_tiny", "dinov3_tiny", "sam_tiny"])
def test_dense_features(smoke, elsewhere, name):
    """Of each family of the smoke preset, with further views; without positions where the network has them."""
    entry = smoke["backbones"][name] | {"views": ["plain", "mirrored"], "precision": "float32"}
    if name != "sam_tiny":
        entry |= {"debias": {"components": 2}, "facet": "key", "norm": False}
    spec = params.BackboneSpec.model_validate(entry)
    network, found = build(spec), []
    image = PillowImage.fromarray(np.random.default_rng(0).integers(0, 256, (80, 112, 3), np.uint8))
    pixels, grid = network.preprocess(image, spec.image_size)
    for device in ("cpu", elsewhere):
        network.to(device)
        network._bases.clear()
        with torch.inference_mode():
            features, _ = encode.dense(network, spec, {spec.image_size: (pixels[None].to(device), grid)}, "it", "key")
        found.append(features.cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


def _experiment(smoke: dict) -> dict:
    """The small one with two categories, and everything that training can do."""
    values = json.loads(json.dumps(smoke))
    small(values)
    for dataset in values["datasets"].values():
        dataset["categories"] = CATEGORIES
    keep = {"anchor": 1.0, "average": 0.5, "distil": DISTIL | {"after": 0.3}}
    apart = {"table": "toy", "weight": 0.5, "temperature": 0.05}
    more = {"ema": 0.9, "accumulate": 2, "keep": keep, "end_point": END_POINT, "sides": apart}
    values["tunings"]["last1"] |= more | {"batches": {"by": "images", "images": 2}}
    values["grid"]["layers"] |= {"backbones": [], "datasets": []}
    return values


@pytest.fixture(scope="module")
def made(smoke, tmp_path_factory) -> Path:
    """A folder with all that training reads, and what it wrote on the CPU."""
    folder = tmp_path_factory.mktemp("devices")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_stages(_experiment(smoke), "fetch", "weights", "trunk", "finetune")
    return folder


@pytest.fixture
def run(made, tmp_path, monkeypatch) -> Path:
    """A copy of it, which is the current folder, without the state of that run."""
    folder = tmp_path / "experiment"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    Path("checkpoints/dinov2_tiny/last1/last.pt").unlink()
    return folder


def _train(values: dict) -> graph.Job:
    write_json(Path("params.yaml"), values)
    cli.run_stage(cli.parser().parse_args(["finetune", "dinov2_tiny", "last1"]))
    return graph.Graph(params.load()).job("finetune", "dinov2_tiny", "last1")


def _losses(job: graph.Job) -> np.ndarray:
    return pd.read_csv(job.outputs["steps"])["loss"].to_numpy()


def test_training(smoke, made, run, monkeypatch, elsewhere):
    """A whole run: nothing lies on the wrong device, and losses are the CPU's."""
    monkeypatch.setattr(runtime, "device", lambda *_: elsewhere)
    job = _train(_experiment(smoke))
    np.testing.assert_allclose(_losses(job), pd.read_csv(made / job.outputs["steps"])["loss"], rtol=1e-3)


def test_a_run_begun_elsewhere_resumes(smoke, made, run, monkeypatch, elsewhere):
    """On the CPU until its last step, then on the device: all is where the optimizer expects it."""
    update, trainers = trainer.Trainer._update, []
    steps = len(pd.read_csv(made / "checkpoints/dinov2_tiny/last1/steps.csv"))

    def stopping(self: trainer.Trainer, *arguments: Any) -> float:
        trainers.append(self)
        if self.device.type == "cpu" and self.state["step"] == steps - 1:
            raise InterruptedError
        return update(self, *arguments)

    monkeypatch.setattr(trainer.Trainer, "_update", stopping)
    monkeypatch.setattr(runtime, "device", lambda *_: torch.device("cpu"))
    with pytest.raises(InterruptedError):
        _train(_experiment(smoke))
    begun = len(trainers)
    monkeypatch.setattr(runtime, "device", lambda *_: elsewhere)
    job = _train(_experiment(smoke))
    assert len(trainers) == begun + 1
    np.testing.assert_allclose(_losses(job), pd.read_csv(made / job.outputs["steps"])["loss"], rtol=1e-3)
    resumed = trainers[-1]
    for state in resumed.optimizer.state.values():
        assert [state[name].device.type for name in ("step", "exp_avg", "exp_avg_sq")] == ["cpu", "lazy", "lazy"]
    assert {tensor.device for tensor in resumed.ema.values()} == {elsewhere}


def test_features_and_matches(smoke, run, monkeypatch, elsewhere):
    """Those of the frozen network and of the tuned one, which has a head."""
    values, similarity = _experiment(smoke), {}
    for device in (torch.device("cpu"), elsewhere):
        monkeypatch.setattr(runtime, "device", lambda *_, device=device: device)
        jobs = run_stages(values, "extract", "adapt", "match")
        paths = [job.outputs["matches"] for job in jobs.jobs() if job.stage == "match"]
        similarity[device.type] = np.concatenate([pd.read_parquet(path)["similarity"] for path in paths])
    assert len(paths) > 2
    np.testing.assert_allclose(similarity[elsewhere.type], similarity["cpu"], atol=2e-3)


def test_mixed_precision_with_all_that_training_can_do(smoke, run):
    """In bfloat16: near float32, and the same whether activations are kept or computed again."""
    losses, tensors = [], []
    for compute, again in (("float32", False), ("bfloat16", False), ("bfloat16", True)):
        values = _experiment(smoke)
        values["tunings"]["last1"]["keep"] = None  # which matches it is sure of may change at a rounding
        values["backbones"]["dinov2_tiny"]["compute"] = compute
        values["runtime"]["checkpointing"] = again
        run_stages(values, "trunk")
        job = _train(values)
        losses.append(_losses(job))
        tensors.append(read_checkpoint(job.outputs["tensors"]))
        job.outputs["tensors"].with_name("last.pt").unlink()
    exact, kept, recomputed = losses
    np.testing.assert_allclose(kept, exact, rtol=0.05)
    assert not np.allclose(kept, exact, rtol=1e-5)
    np.testing.assert_allclose(recomputed, kept, rtol=1e-5)
    for key, tensor in tensors[1].items():
        torch.testing.assert_close(tensors[2][key], tensor)


def test_a_process_without_a_batch_takes_the_step_too(smoke, run):
    """Two processes and one batch a step, in float16, whose gradients are scaled: the same as in one process."""
    values, losses = _experiment(smoke), []
    values["backbones"]["dinov2_tiny"]["compute"] = "float16"
    values["tunings"]["last1"]["batches"] = {"by": "pairs", "pairs": 1000}
    run_stages(values, "trunk")
    for count in (1, 2):
        values["runtime"]["processes"] = count
        job = _train(values)
        losses.append(_losses(job))
        job.outputs["tensors"].with_name("last.pt").unlink()
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
