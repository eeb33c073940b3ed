"""The change matrix: for every leaf of params.yaml and every module, what re-runs, in DVC and in Snakemake.

The small experiment is finished and up to date in both engines; each change is made to it and looked at by both,
without running. That what is planned is also what runs, test_workflow.py shows on some of the changes.
"""

import contextlib
import copy
import io
import logging
import shutil
from pathlib import Path

import pytest
import torch
from conftest import small
from dvc.repo import Repo
from ruamel.yaml import YAML

from semcorr import graph, params, plan
from semcorr.backbones import build
from semcorr.datasets import toy

ROOT = Path(__file__).parents[1]
TEST, TRN, VAL = "toy_spair_test", "toy_spair_trn", "toy_spair_val"
B = "dinov2_tiny"


def cells(
    stage: str, weights: tuple[str, ...] = ("frozen", "last1"), rules: tuple[str, ...] = ("argmax", "softargmax")
) -> set[str]:
    return {f"{stage}@{B}-{one}-{TEST}-{rule}" for one in weights for rule in rules}


# What a change sets off, from the end of the graph to its beginning.
REPORT = {"report"}
DRAW = {f"draw@{B}-{weights}-{TEST}" for weights in ("frozen", "last1")} | REPORT
SCORE = cells("evaluate") | REPORT
MATCH = cells("match") | SCORE | DRAW
TUNED = {f"{s}@{B}-last1-{TEST}-{rule}" for s in ("match", "evaluate") for rule in ("argmax", "softargmax")}
TUNED |= {f"draw@{B}-last1-{TEST}", f"adapt@{B}-last1-{TEST}"} | REPORT
FINETUNE = {f"finetune@{B}-last1"} | TUNED
EXTRACT = {f"extract@{B}-frozen-{TEST}"} | cells("match", ("frozen",)) | cells("evaluate", ("frozen",))
EXTRACT |= {f"draw@{B}-frozen-{TEST}"} | REPORT
TRUNK = {f"trunk@{B}-{name}" for name in (TRN, VAL, TEST)} | FINETUNE
ENCODE = EXTRACT | TRUNK
WEIGHTS = {f"weights@{B}-frozen"} | ENCODE
FETCH_TRN = {f"fetch@{TRN}", f"trunk@{B}-{TRN}"} | FINETUNE
FETCH_VAL = {f"fetch@{VAL}", f"trunk@{B}-{VAL}"} | FINETUNE
FETCH_TEST = {f"fetch@{TEST}", f"trunk@{B}-{TEST}"} | EXTRACT | TUNED
FETCH = {TRN: FETCH_TRN, VAL: FETCH_VAL, TEST: FETCH_TEST}
SOFT = cells("match", rules=("softargmax",)) | cells("evaluate", rules=("softargmax",)) | REPORT
ARG = cells("match", rules=("argmax",)) | cells("evaluate", rules=("argmax",)) | DRAW
THREADS = ENCODE | MATCH
NOTHING: set[str] = set()

# Leaf of params.yaml -> another value, and what re-runs. `validate` is left out: DVC runs it on any change.
LEAVES: dict[str, tuple[object, set[str]]] = {
    "preset": ("other", SCORE | DRAW),
    "grid.rules": (["argmax"], REPORT),
    "grid.trunks": ([TEST, VAL, TRN], REPORT),
    **{
        f"datasets.{name}.{leaf}": (value, FETCH[name])
        for name, split in ((TRN, "trn"), (VAL, "val"), (TEST, "test"))
        for leaf, value in {
            "sources": [{"kind": "toy", "seed": 9, "images": {"trn": 3, "val": 2, "test": 2}}],
            "expect": "spair71k",
            "split": "val" if split == "trn" else "trn",
            "layout": "small",
            "limit": 1,
        }.items()
    },
    f"backbones.{B}.model": ("vit_base_patch14_dinov2", WEIGHTS),
    f"backbones.{B}.overrides": ({"depth": 4, "embed_dim": 48, "num_heads": 3, "init_values": 1.0}, WEIGHTS),
    f"backbones.{B}.weights": ({"kind": "random", "seed": 9}, WEIGHTS),
    f"backbones.{B}.image_size": (126, ENCODE),
    f"backbones.{B}.layer": (1, ENCODE),
    f"backbones.{B}.norm": (False, EXTRACT | FINETUNE),
    f"backbones.{B}.compute": ("bfloat16", ENCODE),
    f"backbones.{B}.precision": ("float32", EXTRACT | FINETUNE),
    "backbones.dinov3_tiny.layer": (2, NOTHING),  # not in the grid
    "backbones.sam_tiny.image_size": (64, NOTHING),
    "trunk.blocks": (2, TRUNK),
    "trunk.precision": ("float16", TRUNK),
    **{
        f"tunings.last1.{leaf}": (value, FINETUNE)
        for leaf, value in {
            "lora": {"rank": 2, "alpha": 4.0, "targets": ["qkv"]},
            "start": {"path": "x.safetensors", "sha256": "0" * 64},
            "loss": {"name": "cosine"},
            "end_point": {"weight": 1.0, "temperature": 0.05},
            "learning_rate": 2.0e-3,
            "weight_decay": 0.02,
            "warmup": 0.2,
            "schedule": "constant",
            "gradient_clip": 2.0,
            "ema": 0.9,
            "epochs": 3,
            "batches": {"by": "pairs", "pairs": 4},
            "accumulate": 2,
            "augment": {"flip": True, "photometric": 0.1},
            "validation": {"every": 2, "pairs": None},
            "patience": 1,
            "seed": 1,
        }.items()
    },
    "rules.argmax.sampling": ("nearest", ARG),
    "rules.softargmax.sampling": ("nearest", SOFT),
    "rules.softargmax.window": (5, SOFT),
    "rules.softargmax.temperature": (0.05, SOFT),
    "evaluate.thresholds": ([0.05, 0.10, 0.15, 0.25], SCORE | DRAW),
    "evaluate.references": ({"spair": ["bbox", "image"]}, SCORE | DRAW),
    "evaluate.bootstrap": (200, SCORE | DRAW),
    "evaluate.seed": (1, SCORE | DRAW),
    "threads": (2, THREADS),
    "runtime.device": ("auto", NOTHING),
    "runtime.workers": (1, NOTHING),
    "runtime.batch_size": (3, NOTHING),
    "runtime.compile": (True, NOTHING),
    "runtime.checkpointing": (True, NOTHING),
}
# Leaves that change only together with others, and what stands for them here.
TOGETHER = {
    "grid": "an axis gains or loses a name: its cells come or go, and report runs; train, validate: as a tuning",
    "datasets.*.format": "its other keys change too; as `sources`",
    "backbones.*.family": "its other keys change too; as `model`",
    "backbones.*.facet": "not with norm; read where `layer` is",
    "backbones.*.debias": "not with tunings; read by extract alone",
    "baselines": "`kind` has no other value for the trained weights",
    "tunings.last1.blocks": "at most trunk.blocks; as any key of the tuning",
    "rules.*.readout": "its other keys change too; as `sampling`",
    "runtime.processes": "as the other keys of runtime",
}
EVERYTHING = {f"fetch@{name}" for name in FETCH} | WEIGHTS
MODULES: dict[str, set[str]] = {
    "params.py": NOTHING,
    "graph.py": NOTHING,
    "cli.py": NOTHING,
    "api.py": NOTHING,
    "images.py": NOTHING,
    "serve.py": NOTHING,
    "compare.py": NOTHING,
    "plan.py": NOTHING,
    "stale.py": NOTHING,
    "watched.py": NOTHING,
    "engines.py": NOTHING,
    "errors.py": NOTHING,
    "stages/validate.py": NOTHING,
    "stages/fetch.py": EVERYTHING - {f"weights@{B}-frozen"},
    "stages/weights.py": WEIGHTS,
    "stages/extract.py": ENCODE,
    "stages/trunk.py": TRUNK,
    "stages/finetune.py": FINETUNE,
    "stages/adapt.py": TUNED,
    "stages/match.py": MATCH,
    "stages/evaluate.py": SCORE,
    "stages/draw.py": DRAW,
    "stages/report.py": REPORT,
    "page.py": REPORT,
    "templates/report.html": REPORT,
    "pictures.py": DRAW,
    "pck.py": FINETUNE | MATCH,
    "finite.py": WEIGHTS,
    "architectures.py": NOTHING,
    "published.py": NOTHING,
    "shipped.py": NOTHING,
    "matching.py": FINETUNE | cells("match") | SCORE | DRAW,
    "losses.py": FINETUNE,
    "training.py": FINETUNE,
    "tail.py": FINETUNE,
    "store.py": ENCODE,
    "runtime.py": ENCODE,
    "geometry.py": WEIGHTS,
    "backbones/vit.py": WEIGHTS,
    "datasets/spair.py": EVERYTHING - {f"weights@{B}-frozen"},
    "datasets/base.py": EVERYTHING - {f"weights@{B}-frozen"},
    "download.py": EVERYTHING,
    "files.py": EVERYTHING,
    "provenance.py": EVERYTHING,
}


def planned_by_dvc(repo: Repo) -> set[str]:
    """What `dvc repro` would run, were every output of a re-run another one: the changed stages, and all after them."""
    stages = [stage for stage in repo.index.stages if stage.addressing != "validate"]  # what it writes is constant
    with repo.lock:
        changed = {stage.addressing for stage in stages if stage.status()}
    edges = [(after.addressing, before.addressing) for after, before in repo.index.graph.edges]
    queue = set(changed)
    while queue:
        queue = {after for after, before in edges if before in queue} - changed
        changed |= queue
    return changed


def planned_by_snakemake() -> set[str]:
    """What `snakemake` would run."""
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import DAGSettings, OutputSettings, Quietness, ResourceSettings

    found = set()
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=True)) as api:
        workflow = api.workflow(resource_settings=ResourceSettings(cores=2), snakefile=Path("Snakefile"))
        with contextlib.redirect_stdout(io.StringIO()):
            workflow.dag(DAGSettings(max_checksum_file_size=10**11)).printd3dag()
        dag = workflow._workflow.dag
        for job in dag.needrun_jobs():
            if not job.rule.norun:
                axes = graph.STAGES[job.rule.name].axes
                found.add("@".join(filter(None, [job.rule.name, "-".join(job.wildcards_dict[axis] for axis in axes)])))
    logging.getLogger("snakemake").handlers.clear()
    return found


PLANNED = ("Bicycle_000.png", "net.pth", "trunk.precision", "rules.softargmax.window", "losses.py", "back again")


def planned_by_us() -> set[str]:
    """What `semcorr plan` says."""
    return {
        "@".join(filter(None, [job.stage, "-".join(job.cell.values())]))
        for job, _ in plan.pending(graph.Graph(params.load()))
    }


def _compare(what: str, expected: set[str], wrong: list[str], repo: Repo) -> None:
    planners = {"DVC": lambda: planned_by_dvc(repo), "Snakemake": planned_by_snakemake}
    if what in PLANNED:
        planners["semcorr plan"] = planned_by_us
    for engine, planner in planners.items():
        planned = planner()
        if planned != expected:
            more, less = sorted(planned - expected), sorted(expected - planned)
            wrong.append(f"{what}, {engine}: runs {more} beside what it should, and not {less}")


def _with(values: dict, leaf: str) -> dict:
    """The parameters with another value of a leaf."""
    changed = copy.deepcopy(values)
    place = changed
    *path, last = leaf.split(".")
    for step in path:
        place = place[step]
    assert place[last] != LEAVES[leaf][0], leaf
    place[last] = LEAVES[leaf][0]
    return changed


def _jobs(values: dict) -> dict[str, tuple]:
    """What is asked of each job: its fingerprint and its outputs."""
    return {
        "@".join(filter(None, [job.stage, "-".join(job.cell.values())])): (job.fingerprint, job.outputs)
        for job in graph.Graph(params.validate(values, "x")).jobs()
        if job.stage != "validate"
    }


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_changes_what_is_asked_of_the_jobs_that_read_it(smoke, leaf):
    """Every leaf, by the fingerprints that keep one engine from taking what the other made for current."""
    values = copy.deepcopy(smoke)
    small(values)
    before, after = _jobs(values), _jobs(_with(values, leaf))
    assert {name for name in after if before.get(name) != after[name]} == LEAVES[leaf][1]


@pytest.mark.pipeline
@pytest.mark.parametrize("part", range(3))
def test_both_engines_plan_what_a_change_touches(finished, monkeypatch, part):
    """Every leaf and every module, as DVC and Snakemake see them on a finished experiment."""
    monkeypatch.chdir(finished.root)
    yaml = YAML(typ="safe")
    before = Path("params.yaml").read_text()
    wrong: list[str] = []
    repo = Repo(".")
    for leaf in list(LEAVES)[part::3]:
        with Path("params.yaml").open("w") as file:
            yaml.dump(_with(yaml.load(before), leaf), file)
        other_cells = leaf.split(".")[0] in ("preset", "grid")  # dvc.yaml, filled in, is another then
        _compare(leaf, LEAVES[leaf][1], wrong, Repo(".") if other_cells else repo)
    Path("params.yaml").write_text(before)
    for module in list(MODULES)[part::3]:
        path = Path("semcorr") / module
        content = path.read_bytes()
        path.write_bytes(content + b"\n# changed\n")
        _compare(module, MODULES[module], wrong, repo)
        path.write_bytes(content)
    _compare("back again", set(), wrong, Repo("."))
    assert not wrong, "\n".join(wrong)


def _from_this_machine(values: dict) -> None:
    """One backbone and one dataset, untrained, both of files below `mine`."""
    values["grid"] |= {"backbones": [B], "tunings": [], "weights": ["frozen"], "trunks": []}
    values["grid"] |= {"train": None, "validate": None}
    values["datasets"] = {"toy_willow": values["datasets"]["toy_willow"]}
    values["datasets"]["toy_willow"]["sources"] = [{"kind": "path", "path": "mine/willow"}]
    values["backbones"] = {B: values["backbones"][B] | {"weights": {"kind": "file", "path": "mine/net.pth"}}}
    values["backbones"][B]["weights"]["sha256"] = None
    values["tunings"] = {}


@pytest.mark.pipeline
def test_data_and_weights_of_this_machine_are_watched(clone, monkeypatch):
    """An edit to an image of a dataset's own folder and to a network's file, in both engines; then the folder goes."""
    project = clone("smoke")
    project.edit(_from_this_machine)
    monkeypatch.chdir(project.root)
    toy.write_pfwillow(Path("mine/willow"), 3, {"all": 2})
    torch.save(build(params.load().backbones[B]).net.state_dict(), "mine/net.pth")
    fetch, weights = "fetch@toy_willow", f"weights@{B}-frozen"
    outputs = ("data/toy_willow/images.parquet", f"data/weights/{B}/frozen.safetensors")
    project.run("snakemake", "--cores", "all", "--", *outputs)
    project.run("dvc", "commit", "--force", "validate", fetch, weights)
    repo = Repo(".")
    rest = planned_by_dvc(repo)  # what was not made
    assert len(rest) == 7
    assert not rest & {fetch, weights}
    wrong: list[str] = []
    _compare("nothing", rest, wrong, repo)
    for path, stage in ((next(Path("mine/willow").rglob("*.png")), fetch), (Path("mine/net.pth"), weights)):
        shutil.copy2(path, "kept")
        path.write_bytes(path.read_bytes() + b" ")
        _compare(path.name, rest | {stage}, wrong, repo)
        shutil.move("kept", path)
    _compare("back again", rest, wrong, repo)
    assert not wrong, "\n".join(wrong)
    assert Path("watched/weights/.gitignore").read_text() == f"/.gitignore\n/{B}\n"  # links are for this machine alone

    Path("mine/willow").rename("mine/elsewhere")
    said = project.run("snakemake", "--cores", "1", expect=1)
    assert "watched/datasets/toy_willow: links to ../../mine/willow, which is gone. Bring it back" in said
    assert Path(outputs[0]).exists()


def test_every_leaf_is_in_the_matrix(smoke):
    """The matrix names every leaf of params.yaml, or says what stands for it."""
    values = copy.deepcopy(smoke)
    small(values)

    def leaves(place: dict, path: tuple[str, ...] = ()):
        for key, value in place.items():
            name = ".".join([*path, key])
            if any(leaf.startswith(f"{name}.") for leaf in LEAVES):
                yield from leaves(value, (*path, key))
            elif name not in LEAVES:
                yield name

    stand_ins = [pattern.replace("*", "") for pattern in TOGETHER]
    for leaf in leaves(values):
        words = leaf.split(".")
        star = f"{words[0]}..{words[-1]}"
        outside = words[0] == "backbones" and words[1] != B
        assert outside or star in stand_ins or any(leaf.startswith(one) for one in stand_ins), leaf


def test_every_module_is_in_the_matrix():
    files = {path.relative_to(ROOT / "semcorr").as_posix() for path in (ROOT / "semcorr").rglob("*.py")}
    like = {"backbones": "backbones/vit.py", "datasets": "datasets/spair.py"}
    rest = {file for file in files - MODULES.keys() if like.get(file.split("/")[0]) not in MODULES}
    assert rest == {"__init__.py", "__main__.py", "stages/__init__.py"}
