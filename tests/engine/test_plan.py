"""What would run, and its cost, against counting by hand and against what was then written."""

import contextlib
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dvc.repo import Repo
from dvc.stage.cache import RunCacheNotFoundError
from PIL import Image

from semcorr import cli, params
from semcorr.artifacts.files import write_json
from semcorr.datasets import spair, toy
from semcorr.datasets.listing import count
from semcorr.engine import dvc_sync, graph, plan
from semcorr.engine.current import Current
from semcorr.engine.footprint import LIBRARIES, TORCH, Footprints


@pytest.fixture
def experiment(smoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = json.loads(json.dumps(smoke))
    values["grid"]["backbones"] = ["dinov2_tiny"]
    write_json(tmp_path / "params.yaml", values)
    return values


def _pending() -> dict[str, str]:
    return Current(graph.Graph(params.load())).stale


def _run(*words: str) -> None:
    cli.run_stage(cli.parser().parse_args(list(words)))


def test_why_a_job_would_run(experiment, tmp_path):
    everything = _pending()
    jobs = [job for job in graph.Graph(params.load()).jobs() if job.stage != "validate"]
    assert len(everything) == len(jobs)
    assert everything["fetch@toy_willow"] == "data/toy_willow/images.parquet is missing"
    _run("fetch", "toy_willow")
    _run("weights", "dinov2_tiny", "frozen")
    left = _pending()
    assert everything.keys() - left.keys() == {"fetch@toy_willow", "weights@dinov2_tiny-frozen"}
    experiment["backbones"]["dinov2_tiny"]["weights"]["seed"] = 8
    write_json(tmp_path / "params.yaml", experiment)
    why = "changed in params.yaml: backbones.dinov2_tiny.weights.seed"
    assert _pending()["weights@dinov2_tiny-frozen"] == why
    assert "fetch@toy_willow" not in _pending()


def test_operations_of_a_vit_by_hand(experiment):
    """Patch embedding, and in each block four d x d and two d x 4d products a token, and two n x n x d ones."""
    costs = plan.Costs(graph.Graph(params.load()))
    once = costs._pass("dinov2_tiny", (112, 112))
    cells, width = 8 * 8, 48
    tokens = cells + 1
    block = 2 * tokens * (4 * width**2 + 2 * 4 * width**2) + 2 * 2 * tokens**2 * width
    embedding = 2 * cells * 14 * 14 * 3 * width
    assert once.trunk == pytest.approx(embedding + 2 * block, rel=0.01)  # three blocks, of which the last is tuned
    assert once.tail == pytest.approx(block, rel=0.01)
    assert once.values == cells * width


def test_disk_against_what_is_written(experiment):
    _run("fetch", "toy_willow")
    _run("weights", "dinov2_tiny", "frozen")
    _run("extract", "dinov2_tiny", "frozen", "toy_willow")
    plan_of = graph.Graph(params.load())
    costs = plan.Costs(plan_of)
    for cell in (("weights", "dinov2_tiny", "frozen"), ("extract", "dinov2_tiny", "frozen", "toy_willow")):
        job = plan_of.job(*cell)
        written = sum(path.stat().st_size for path in job.outputs.values())
        assert costs.of(job).disk == pytest.approx(written, rel=0.35), cell  # images differ in shape; headers


HIGHEST = "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"


def _held(program: str, *words: str) -> int:
    """The most bytes that a process of its own has held."""
    command = [sys.executable, "-c", f"import sys; {program}; {HIGHEST}", *words]
    return 1024 * int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def _middling(values: dict) -> None:
    """Wide enough that what jobs compute counts beside the libraries that they import."""
    values["backbones"]["dinov2_tiny"] |= {"overrides": {"depth": 2}, "image_size": 448, "layer": 1}
    values["datasets"]["toy_willow"]["sources"][0]["images"] = {"all": 12}
    values["datasets"]["toy_spair_trn"]["sources"][0]["images"] = {"trn": 4, "val": 3, "test": 2}
    values["tunings"]["last1"] |= {"epochs": 1, "batches": {"by": "images", "images": 4}}
    values["evaluate"]["bootstrap"] = 2000
    values["runtime"]["batch_size"] = 16


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux, to see what a process has held")
@pytest.mark.parametrize("change", [lambda values: None, _middling], ids=["smoke", "middling"])
def test_memory_against_what_is_held(experiment, tmp_path, change):
    """The estimate is never too low, and at most twice too high where the libraries are as large as it says."""
    change(experiment)
    write_json(tmp_path / "params.yaml", experiment)
    plan_of = graph.Graph(params.load())
    for job in plan_of.jobs():
        if job.stage in ("fetch", "weights", "trunk"):
            _run(job.stage, *job.cell.values())
    measured = [
        ("extract", "dinov2_tiny", "frozen", "toy_willow"),
        ("finetune", "dinov2_tiny", "last1"),
        ("adapt", "dinov2_tiny", "last1", "toy_willow"),
        ("match", "dinov2_tiny", "frozen", "toy_willow", "argmax"),
        ("evaluate", "dinov2_tiny", "frozen", "toy_willow", "argmax"),
    ]
    with_torch, without = (_held(f"import semcorr.stages.{stage}") for stage in ("extract", "evaluate"))
    for stage, *cell in measured:
        held = _held("from semcorr import cli; cli.main(sys.argv[1:])", stage, *cell)
        estimate = Footprints(plan.Costs(plan_of)).of(plan_of.job(stage, *cell))
        # How large the libraries are is not estimated, and differs between builds of torch.
        spare = LIBRARIES[stage] - without if stage in LIBRARIES else TORCH - with_torch
        assert held <= estimate <= 2 * held + max(0, spare), (stage, *cell)


def test_memory_of_a_network_by_hand(experiment):
    """A block's widest point: its input, that normalised, and four times as much before and after the activation."""
    peaks = Footprints(plan.Costs(graph.Graph(params.load())))
    tokens, width = 8 * 8 + 1, 48
    block = 4 * tokens * width * (1 + 1 + 4 + 4)
    assert block <= peaks._peak("dinov2_tiny", "trunk", 112) <= 1.5 * block
    assert peaks._peak("dinov2_tiny", "training", 112) > 1.5 * peaks._peak("dinov2_tiny", "tail", 112)


def test_sizes_of_drawn_data_before_they_are_drawn(experiment):
    names = ("toy_willow", "toy_spair_val")
    before = [plan.Costs(graph.Graph(params.load())).sizes[name] for name in names]
    for name, expected in zip(names, before, strict=True):
        _run("fetch", name)
        drawn = plan.Costs(graph.Graph(params.load())).sizes[name]
        assert (expected.known, drawn.known) == (False, True)
        for number in ("images", "pairs", "keypoints"):  # few have no partner that shows as much of the object
            assert getattr(expected, number) == pytest.approx(getattr(drawn, number), rel=0.2)


def _dataset(format_: str, path: Path, **keys: object) -> params.DatasetSpec:
    common = {"expect": "any", "categories": None, "limit": None, "sources": [{"kind": "path", "path": str(path)}]}
    return params.validate_dataset({"format": format_, **common, **keys})


def _packed(folder: Path) -> list[Path]:
    """A folder, and archives of it, with it as their only folder, and with its files at the top."""
    tops = {"top": {"root_dir": folder.parent, "base_dir": folder.name}, "flat": {"root_dir": folder}}
    kinds = [(kind, top) for kind in ("zip", "gztar") for top in tops]
    target = folder.parent / "packed"
    return [folder, *(Path(shutil.make_archive(str(target / top), kind, **tops[top])) for kind, top in kinds)]


def test_spair_is_counted_where_it_lies(tmp_path):
    """As `fetch` would count it, which reads every annotation."""
    toy.write_spair(tmp_path / "SPair-71k", seed=1, images={"trn": 3, "val": 2, "test": 2})
    for path in _packed(tmp_path / "SPair-71k"):
        for split, layout, limit in (("trn", "large", None), ("trn", "small", None), ("test", "large", 2)):
            whole = spair.read(tmp_path / "SPair-71k", split, layout).first(limit)
            found = count(path, _dataset("spair", path, split=split, layout=layout, limit=limit))
            assert found[:2] == (len(whole.images), len(whole.pairs)), path
            for side, name in zip(found[2], ("height", "width"), strict=True):
                assert side == pytest.approx(np.median([getattr(image, name) for image in whole.images]), abs=1)
        kept = spair.read(tmp_path / "SPair-71k", "trn", "large").only(["dog", "car"])
        found = count(path, _dataset("spair", path, split="trn", layout="large", categories=["dog", "car"]))
        assert found[:2] == (len(kept.images), len(kept.pairs))
        assert count(path, _dataset("pfpascal", path, split="trn")) is None


def _image(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def test_pf_willow_is_counted_where_it_lies(tmp_path):
    root = tmp_path / "PF-dataset"
    for subset, images in {"car(G)": 4, "car(S)": 3, "duck(S)": 2}.items():
        for name in map(str, range(images)):
            _image(root / subset / f"{name}.png")
            (root / subset / f"{name}.mat").write_bytes(b"not read")
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["imageA", "imageB"], ["PF-dataset/car(G)/0.png", "PF-dataset/car(G)/3.png"]])
    for path in _packed(root):
        for keys, found in (
            ({}, (9, 4 * 3 + 3 * 2 + 2)),
            ({"subsets": ["car(S)", "duck(S)"]}, (5, 3 * 2 + 2)),
            ({"limit": 2}, (3, 2)),
            ({"categories": ["duck"]}, (2, 2)),
            ({"categories": ["car"], "subsets": ["car(S)", "duck(S)"]}, (3, 3 * 2)),
            ({"pairs": str(tmp_path / "pairs.csv")}, (2, 1)),
        ):
            spec = _dataset("pfwillow", path, **{"pairs": None, "subsets": None} | keys)
            assert count(path, spec) == (*found, (30, 40))


def test_pf_pascal_is_counted_where_it_lies(tmp_path):
    root = tmp_path / "PF-PASCAL"
    for name in "abc":
        _image(root / f"JPEGImages/{name}.jpg")
    rows = [["source", "target", "class", "flip"], *(["a.jpg", "b.jpg", "3", flip] for flip in "01")]
    with (root / "train_pairs_pf_pascal.csv").open("w", newline="") as file:
        csv.writer(file).writerows([*rows, ["JPEGImages/b.jpg", "JPEGImages/c.jpg", "7", "0"]])
    for path in _packed(root):
        assert count(path, _dataset("pfpascal", path, split="trn")) == (3, 2, (30, 40))
        assert count(path, _dataset("pfpascal", path, split="trn", categories=["bird"])) == (2, 1, (30, 40))
        assert count(path, _dataset("pfpascal", path, split="val")) is None


def test_ap10k_is_counted_where_it_lies(tmp_path):
    root = tmp_path / "ap-10k"
    for name in ("Bovidae/cow/1", "Bovidae/cow/2", "Bovidae/bison/3"):
        _image(root / f"JPEGImages/{name}.jpg")
    pairs = {"test": ["1-2:cow", "2-1_cow"], "test_cross_species": ["1-3\uf03aBovidae"], "val": []}
    for folder, names in pairs.items():
        for name in names:
            write_json(root / f"PairAnnotation/{folder}/{name}.json", "not read")
    for path in _packed(root):
        spec = _dataset("ap10k", path, split="test", subset="intra_species")
        assert count(path, spec) == (2, 2, (30, 40))
        assert count(path, _dataset("ap10k", path, split="test", subset="cross_species")) == (2, 1, (30, 40))
        for group, pairs in {"Bovidae": 1, "cow": 0}.items():
            found = count(path, _dataset("ap10k", path, split="test", subset="cross_species", categories=[group]))
            assert (found[1] if found else 0) == pairs
        assert count(path, _dataset("ap10k", path, split="val", subset="intra_species")) is None


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_a_damaged_archive_is_not_counted(tmp_path, kind):
    toy.write_spair(tmp_path / "mine", seed=1, images={"trn": 1, "val": 1, "test": 2})
    path = Path(shutil.make_archive(str(tmp_path / "mine"), kind, tmp_path / "mine"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert count(path, _dataset("spair", path, split="test", layout="large")) is None


def test_sizes_of_data_on_the_disk_and_of_benchmarks(experiment, tmp_path):
    """The plan counts the former, writing nothing, and knows the latter, which may not even be downloaded yet."""
    shutil.make_archive(str(tmp_path / "mine"), "zip", _drawn(tmp_path))
    url = {"kind": "url", "urls": ["https://example.org/x.zip"], "sha256": None}
    willow = {"format": "pfwillow", "pairs": None, "subsets": None, "categories": None, "limit": None}
    willow |= {"expect": "pfwillow"}
    drawn = experiment["datasets"]["toy_willow"] | {"sources": [{"kind": "path", "path": "mine.zip"}, url]}
    large = {"format": "spair", "sources": [url], "expect": "spair71k", "split": "test", "layout": "large"}
    experiment["datasets"] |= {
        "toy_willow": drawn,
        "large": large | {"categories": None, "limit": None},
        "first": large | {"categories": None, "limit": 100},
        "two_of_18": large | {"categories": ["cat", "dog"], "limit": None},
        "willow": willow | {"sources": [{"kind": "path", "path": "not here"}, url], "subsets": ["car(G)", "car(M)"]},
        "pascal": {"format": "pfpascal", "sources": [url], "expect": "pfpascal", "split": "val"}
        | {"categories": None, "limit": None},
        "other": willow | {"sources": [url], "expect": "any"},
    }
    write_json(tmp_path / "params.yaml", experiment)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    sizes = plan.Costs(graph.Graph(params.load())).sizes
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    found = {name: size and (size.images, size.pairs) for name, size in sizes.items()}
    kinds = len(toy.WILLOW)
    assert found["toy_willow"] == (3 * kinds, 6 * kinds)
    assert found["large"] == (486, spair.PAIRS["large"]["test"])
    assert found["two_of_18"] == (54, round(spair.PAIRS["large"]["test"] / 9))
    assert found["first"] == (200, 100)
    assert found["willow"] == (20, 180)
    assert found["pascal"][1] == 308
    assert found["other"] is None


def _drawn(folder: Path) -> Path:
    toy.write_pfwillow(folder / "mine", seed=1, images={"all": 3})
    return folder / "mine"


JOBS = (
    ("fetch", "toy_willow"),
    ("weights", "dinov2_tiny", "frozen"),
    ("extract", "dinov2_tiny", "frozen", "toy_willow"),
    ("match", "dinov2_tiny", "frozen", "toy_willow", "argmax"),
)


@pytest.fixture
def recorded(experiment, tmp_path):
    """A few jobs of the experiment, run, recorded as after Snakemake, and their outputs removed."""
    shutil.copy(Path(__file__).parents[2] / "dvc.yaml", tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    Repo.init()
    for words in JOBS:
        _run(*words)
    dvc_sync.record()
    assert _cached() == []
    for name in ("data/toy_willow", "data/weights", "features", "matches"):
        shutil.rmtree(tmp_path / name)
    return experiment


def _cached() -> list[str]:
    return [step.job.stage for step in plan.steps(params.load()) if step.cached]


def _restored() -> list[str]:
    """The stages of the jobs above that DVC itself restores now."""
    repo, done = Repo("."), []
    stages = {stage.addressing: stage for stage in repo.index.stages}
    for stage, *cell in JOBS:
        # An input may not have been restored.
        with repo.lock, contextlib.suppress(RunCacheNotFoundError, FileNotFoundError):
            repo.stage_cache.restore(stages[f"{stage}@{'-'.join(cell)}"])
            done.append(stage)
    return done


def test_what_dvc_would_restore_is_from_its_cache(recorded, tmp_path, capsys):
    """Whether DVC knows it from dvc.lock or from its run cache alone."""
    everything = [words[0] for words in JOBS]
    assert _cached() == everything
    assert not any(step.cached for step in plan.steps(params.load(), restores=False))
    Path("dvc.lock").unlink()
    assert _cached() == everything
    recorded["rules"]["argmax"]["sampling"] = "nearest"  # with this, match has never run
    write_json(tmp_path / "params.yaml", recorded)
    cli.main(["plan", "--tflops", "1"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines["extract"].endswith("0.0 TFLOP     00:01      0.00B  from cache (dvc repro)")
    assert lines["fetch"].endswith(" is missing; 1 from cache (dvc repro)")
    assert "cache" not in lines["match"]
    assert _cached() == _restored() == everything[:-1]


def test_what_the_cache_has_lost_runs(recorded):
    """What follows may then have other inputs, for all that is known."""
    tensors = graph.Graph(params.load()).job("weights", "dinov2_tiny", "frozen").outputs["tensors"]
    md5 = Current(graph.Graph(params.load()))._locked["weights@dinov2_tiny-frozen"].outputs[tensors.as_posix()]
    Path(".dvc/cache/files/md5", md5[:2], md5[2:]).unlink()
    Path("dvc.lock").unlink()
    assert _cached() == _restored() == ["fetch"]


def test_without_dvc_nothing_is_from_the_cache(experiment):
    _run("fetch", "toy_willow")
    shutil.rmtree("data/toy_willow")
    assert _cached() == []


def test_on_the_command_line(experiment, tmp_path, capsys):
    experiment["datasets"]["toy_willow"]["sources"] = [{"kind": "path", "path": "mine"}]
    write_json(tmp_path / "params.yaml", experiment)
    cli.main(["plan", "--tflops", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:13]] == [
        *(s for s in graph.STAGES if s not in ("validate", "fuse", "layers")),
        "all",
    ]
    assert lines[1].split()[1] == "3"
    assert "*" in lines[3]  # nobody knows how large one's own data are before they are read
    cli.main(["plan", "--tflops", "1", "--jobs"])
    assert "match dinov2_tiny last1 toy_willow argmax" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["plan", "--tflops", "0"])
    assert "--tflops 0.0: allowed: more than 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["plan", "nope"])
    assert "no such preset" in capsys.readouterr().err
