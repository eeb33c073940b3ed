"""The change matrix: for every leaf of params.yaml and every module, what re-runs, in DVC and in Snakemake.

The small experiment is finished and up to date in both engines; each change is made to it and looked at by both,
without running. That what is planned is also what runs, test_workflow.py shows on some of the changes.
"""

import ast
import contextlib
import copy
import io
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import small
from dvc.repo import Repo
from ruamel.yaml import YAML

from semcorr import params
from semcorr.artifacts.files import remove
from semcorr.datasets import toy
from semcorr.engine import basis, code, graph
from semcorr.engine.current import Current
from semcorr.engine.memory import Memory
from semcorr.networks.backbones import build

ROOT = Path(__file__).parents[2]
TEST, TRN, VAL = "toy_spair_test", "toy_spair_trn", "toy_spair_val"
B = "dinov2_tiny"


def cells(
    stage: str, weights: tuple[str, ...] = ("frozen", "last1"), rules: tuple[str, ...] = ("argmax", "softargmax")
) -> set[str]:
    return {f"{stage}@{B}-{one}-{TEST}-{rule}" for one in weights for rule in rules}


# What a change sets off, from the end of the graph to its beginning.
REPORT = {"report", "headline"}
DRAW = {f"draw@{B}-{weights}-{TEST}" for weights in ("frozen", "last1")} | REPORT
SCORE = cells("evaluate") | DRAW  # which pairs are drawn depends on the scores of the first weights
MATCH = cells("match") | SCORE | DRAW
TUNED = {f"{s}@{B}-last1-{TEST}-{rule}" for s in ("match", "evaluate") for rule in ("argmax", "softargmax")}
TUNED |= {f"draw@{B}-last1-{TEST}", f"adapt@{B}-last1-{TEST}"} | REPORT
FINETUNE = {f"finetune@{B}-last1"} | TUNED
EXTRACT = {f"extract@{B}-frozen-{TEST}"} | cells("match", ("frozen",)) | cells("evaluate", ("frozen",))
EXTRACT |= DRAW
TRUNK = {f"trunk@{B}-{name}" for name in (TRN, VAL, TEST)} | FINETUNE
LAYERS = {f"layers@{B}-{TEST}"} | REPORT
ENCODE = EXTRACT | TRUNK | LAYERS
WEIGHTS = {f"weights@{B}-frozen"} | ENCODE
FETCH_TRN = {f"fetch@{TRN}", f"trunk@{B}-{TRN}"} | FINETUNE
FETCH_VAL = {f"fetch@{VAL}", f"trunk@{B}-{VAL}"} | FINETUNE
FETCH_TEST = {f"fetch@{TEST}", f"trunk@{B}-{TEST}"} | EXTRACT | TUNED | LAYERS
FETCH = {TRN: FETCH_TRN, VAL: FETCH_VAL, TEST: FETCH_TEST}
SOFT = cells("match", rules=("softargmax",)) | cells("evaluate", rules=("softargmax",)) | DRAW
ARG = cells("match", rules=("argmax",)) | cells("evaluate", rules=("argmax",)) | DRAW
THREADS = ENCODE | MATCH
EVALUATE = SCORE | LAYERS
NOTHING: set[str] = set()

# Leaf of params.yaml -> another value, and what re-runs. `validate` is left out: DVC runs it on any change.
LEAVES: dict[str, tuple[object, set[str]]] = {
    "preset": ("other", EVALUATE),
    "grid.rules": (["argmax"], DRAW),
    "grid.trunks": ([TEST, VAL, TRN], REPORT),
    "grid.layers.facets": (["token"], LAYERS),
    "grid.layers.rule": ("softargmax", LAYERS),
    **{
        f"datasets.{name}.{leaf}": (value, FETCH[name])
        for name in (TRN, VAL, TEST)
        for leaf, value in {
            "sources": [{"kind": "toy", "seed": 9, "images": {"trn": 3, "val": 2, "test": 2}}],
            "expect": "spair71k",
            "layout": "small",
            "annotations": "SPair-U",
            "categories": ["car"],
            "part": {"seed": 0, "fraction": 0.5, "keep": "part"},
            "limit": 1,
        }.items()
    },
    f"datasets.{TEST}.split": ("val", FETCH[TEST]),
    f"backbones.{B}.model": ("vit_base_patch14_dinov2", WEIGHTS),
    f"backbones.{B}.overrides": ({"depth": 4, "embed_dim": 48, "num_heads": 3, "init_values": 1.0}, WEIGHTS),
    f"backbones.{B}.weights": ({"kind": "random", "seed": 9}, WEIGHTS),
    f"backbones.{B}.image_size": (140, ENCODE),
    f"backbones.{B}.layer": (1, EXTRACT | TRUNK),
    f"backbones.{B}.norm": (False, EXTRACT | FINETUNE | LAYERS),
    f"backbones.{B}.views": (["plain"], EXTRACT | TUNED),
    f"backbones.{B}.compute": ("bfloat16", ENCODE),
    f"backbones.{B}.precision": ("float32", EXTRACT | FINETUNE | LAYERS),
    "backbones.dinov3_tiny.layer": (2, NOTHING),  # not in the grid
    "backbones.sam_tiny.image_size": (64, NOTHING),
    "trunk.blocks": (2, TRUNK),
    "trunk.precision": ("float16", TRUNK),
    "trunk.sizes": ([84, 126], TRUNK),
    **{
        f"tunings.last1.{leaf}": (value, FINETUNE)
        for leaf, value in {
            "head": {"upsample": 4, "channels": 16, "learning_rate": 2.0},
            "lora": {"rank": 2, "alpha": 4.0, "targets": ["qkv"]},
            "start": {"path": "x.safetensors", "sha256": "0" * 64},
            "loss": {"name": "cosine"},
            "end_point": {"weight": 1.0, "temperature": 0.05},
            "sides": {"table": "toy", "weight": 1.0, "temperature": 0.05},
            "keep": {"anchor": 1.0, "average": None, "distil": None},
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
    "hold_outs": ({"keypoints": {"seed": 0, "fraction": 0.3}, "categories": None}, FINETUNE | SCORE),
    "rules.argmax.sampling": ("nearest", ARG | LAYERS),
    "rules.argmax.search": ("object", ARG | LAYERS),
    "rules.softargmax.sampling": ("nearest", SOFT),
    "rules.softargmax.search": ("object", SOFT),
    "rules.softargmax.window": (5, SOFT),
    "rules.softargmax.temperature": (0.05, SOFT),
    "evaluate.thresholds": ([0.05, 0.10, 0.15, 0.25], EVALUATE),
    "evaluate.headline": (0.05, EVALUATE),
    "evaluate.sides": ({}, EVALUATE),
    "evaluate.references": ({"spair": ["bbox", "image"]}, EVALUATE),
    "evaluate.bootstrap": (200, EVALUATE),
    "evaluate.seed": (1, EVALUATE),
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
    "datasets.*.split": "training has no images of the others; as that of the test set",
    "backbones.*.family": "its other keys change too; as `model`",
    "backbones.*.facet": "not with norm; read where `layer` is",
    "backbones.*.debias": "not with tunings; read by extract alone",
    "baselines": "`kind` has no other value for the trained weights",
    "trunk.mirrored": "true with mirrored views; as the other keys of trunk",
    "tunings.last1.blocks": "at most trunk.blocks; as any key of the tuning",
    "rules.*.readout": "its other keys change too; as `sampling`",
    "runtime.processes": "as the other keys of runtime",
}
EVERYTHING = {f"fetch@{name}" for name in FETCH} | WEIGHTS
FETCHED = EVERYTHING - {f"weights@{B}-frozen"}
READ_OUT = FINETUNE | MATCH | LAYERS
# Module or template -> what runs again where it does something else.
MODULES: dict[str, set[str]] = {
    **dict.fromkeys((f"artifacts/{name}.py" for name in ("__init__", "files", "progress", "provenance")), EVERYTHING),
    **dict.fromkeys((f"datasets/{name}.py" for name in ("__init__", "archive", "download")), EVERYTHING),
    **dict.fromkeys(("stages/weights.py", "tensors.py", "geometry.py", "networks/__init__.py"), WEIGHTS),
    "networks/upsampler.py": WEIGHTS,
    **dict.fromkeys((f"networks/backbones/{name}.py" for name in ("__init__", "base", "timm")), WEIGHTS),
    **dict.fromkeys((f"networks/backbones/{name}.py" for name in ("attention", "names", "plain", "staged")), WEIGHTS),
    **dict.fromkeys(
        (f"networks/backbones/{name}.py" for name in ("checkpoint", "torchscript", "weights", "wheel")), WEIGHTS
    ),
    **dict.fromkeys((f"datasets/{name}.py" for name in ("base", "decode", "spair", "verify")), FETCHED),
    **dict.fromkeys((f"datasets/{name}.py" for name in ("annotations", "formats", "masks", "sources")), FETCHED),
    **dict.fromkeys((f"datasets/toy/{name}.py" for name in ("__init__", "benchmarks", "objects", "scene")), FETCHED),
    "stages/fetch.py": FETCHED,
    **dict.fromkeys(("networks/encode.py", "artifacts/store.py", "networks/runtime.py"), ENCODE),
    "networks/views.py": ENCODE,
    "stages/extract.py": EXTRACT,
    "stages/trunk.py": TRUNK,
    "stages/layers.py": LAYERS,
    **dict.fromkeys((f"networks/{name}.py" for name in ("keeping", "trainer", "training", "tail", "feed")), FINETUNE),
    **dict.fromkeys((f"networks/losses/{name}.py" for name in ("__init__", "gaussian_ce", "sides")), FINETUNE),
    "stages/finetune.py": FINETUNE,
    "stages/adapt.py": TUNED,
    **dict.fromkeys(("matching.py", "pck.py", "plugins.py"), READ_OUT),
    **dict.fromkeys(("readouts/__init__.py", "readouts/argmax.py"), READ_OUT),
    "readouts/softargmax.py": SOFT,
    "stages/match.py": MATCH,
    "datasets/search.py": MATCH | LAYERS,
    **dict.fromkeys(("datasets/hold_outs.py", "datasets/sides.py"), FINETUNE | SCORE),
    **dict.fromkeys(("stages/evaluate.py", "measures.py"), SCORE),
    **dict.fromkeys(("stages/draw.py", "report/__init__.py", "report/gallery.py", "report/pictures.py"), DRAW),
    **dict.fromkeys(("stages/report.py", "report/page.py", "report/charts.py", "report/templates/report.html"), REPORT),
    "report/tables.py": REPORT,
    "stages/headline.py": {"headline"},
    # What no cell of the small experiment uses.
    **dict.fromkeys((f"networks/losses/{name}.py" for name in ("contrastive", "cosine", "l2", "end_point")), NOTHING),
    **dict.fromkeys((f"datasets/{name}.py" for name in ("ap10k", "coco", "pfpascal", "pfwillow")), NOTHING),
    **dict.fromkeys((f"networks/backbones/{name}.py" for name in ("own", "sam")), NOTHING),
    **dict.fromkeys(("networks/fusion.py", "stages/fuse.py", "readouts/kernel_softargmax.py"), NOTHING),
    # What decides or shows, and computes nothing.
    **dict.fromkeys(("datasets/listing.py", "engine/run_cache.py"), NOTHING),
    **dict.fromkeys((f"engine/{name}.py" for name in ("__init__", "at_work", "basis", "code", "current")), NOTHING),
    **dict.fromkeys(("engine/cluster.py", "engine/footprint.py"), NOTHING),
    **dict.fromkeys((f"engine/{n}.py" for n in ("graph", "dvc_sync", "markers", "memory", "plan", "shipped")), NOTHING),
    **dict.fromkeys(
        (f"api/{n}.py" for n in ("__init__", "backbone", "datasets", "evaluator", "export", "find", "matcher")), NOTHING
    ),
    **dict.fromkeys(("api/images.py", "api/serve.py", "api/templates/serve.html", "report/compare.py"), NOTHING),
    "report/references.py": NOTHING,
    **dict.fromkeys(("networks/architectures.py", "networks/published.py", "stages/validate.py"), NOTHING),
    **dict.fromkeys(("engine/project.py", "engine/templates/README.md"), NOTHING),
    **dict.fromkeys(("__init__.py", "__main__.py", "cli.py", "errors.py", "params.py"), NOTHING),
    **dict.fromkeys(("engine/run.py", "engine/warm.py", "report/plain.py", "report/keys.py"), NOTHING),
    "stages/__init__.py": EVERYTHING,
}


def planned_by_dvc(repo: Repo) -> set[str]:
    """What `dvc repro` would run, were every output of a re-run another one: the changed stages, and all after them."""
    stages = [stage for stage in repo.index.stages if stage.addressing != "validate"]  # it always runs
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
    from snakemake.settings.enums import RerunTrigger
    from snakemake.settings.types import DAGSettings, OutputSettings, Quietness, ResourceSettings

    found = set()
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=True)) as api:
        workflow = api.workflow(resource_settings=ResourceSettings(cores=2), snakefile=Path("Snakefile"))
        with contextlib.redirect_stdout(io.StringIO()):  # as profiles/default says
            settings = DAGSettings(rerun_triggers={RerunTrigger.MTIME})
            workflow.dag(settings).printd3dag()
        dag = workflow._workflow.dag
        for job in dag.needrun_jobs():
            if not job.rule.norun:
                axes = graph.STAGES[job.rule.name].axes
                found.add("@".join(filter(None, [job.rule.name, "-".join(job.wildcards_dict[axis] for axis in axes)])))
    logging.getLogger("snakemake").handlers.clear()
    return found


def _compare(what: str, expected: set[str], wrong: list[str], repo: Repo) -> None:
    """Ask all three; `validate`, which DVC runs first of all, writes what it has found."""
    experiment = graph.Graph(params.load())
    basis.write(basis.texts(experiment, Memory()))
    says = {"DVC": planned_by_dvc(repo), "the function": set(Current(experiment).stale)}
    says["Snakemake"] = planned_by_snakemake()
    for who, planned in says.items():
        if planned != expected:
            more, less = sorted(planned - expected), sorted(expected - planned)
            wrong.append(f"{what}, {who}: runs {more} beside what it should, and not {less}")


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
    """Every leaf, by the fingerprints that outputs carry."""
    values = copy.deepcopy(smoke)
    small(values)
    before, after = _jobs(values), _jobs(_with(values, leaf))
    assert {name for name in after if before.get(name) != after[name]} == LEAVES[leaf][1]


def test_a_stage_is_given_what_it_declares_and_no_more(smoke):
    """Each job's view, leaf by leaf; another key is not there to be read."""
    experiment = graph.Graph(params.validate(copy.deepcopy(smoke), "x"))
    for job in experiment.jobs():
        if job.stage == "validate":
            continue
        view = experiment.view(job)
        given = {
            key
            for key in params.leaves(view.model_dump(by_alias=True, warnings=False))
            if not key.startswith(("runtime.", "preset"))
        }
        assert given == params.leaves(job.settings).keys(), job.name
    job = experiment.job("trunk", B, TRN)
    with pytest.raises(AttributeError):
        experiment.view(job).evaluate  # noqa: B018
    with pytest.raises(AttributeError):
        experiment.view(job).backbones[B].norm  # noqa: B018


@pytest.mark.pipeline
@pytest.mark.parametrize("part", range(3))
def test_both_engines_plan_what_a_change_touches(finished, monkeypatch, part):
    """Every leaf and every module, as DVC and Snakemake see them on a finished experiment."""
    monkeypatch.chdir(finished.root)
    monkeypatch.setattr(code, "ROOT", finished.root)
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
    for module in [name for name, expected in MODULES.items() if expected][part::3]:
        with _changed(module):
            _compare(module, MODULES[module], wrong, repo)
    with contextlib.ExitStack() as there:  # all at once: were one of them to run something, that would run
        for module in [name for name, expected in MODULES.items() if not expected][part::3]:
            there.enter_context(_changed(module))
        _compare("modules that compute nothing, or nothing here", set(), wrong, repo)
    _compare("back again", set(), wrong, Repo("."))
    assert not wrong, "\n".join(wrong)


@contextlib.contextmanager
def _edited(path: Path, text: str) -> Iterator[None]:
    """A file with other content, or a new one, while the block runs; then as it was, and as new as now."""
    before = path.read_text() if path.exists() else None
    path.write_text(text)
    yield
    path.unlink() if before is None else path.write_text(before)


CELL = f"metrics/smoke/cells/{B}/frozen/{TEST}/argmax.json"
GALLERY = f"metrics/smoke/galleries/{B}/frozen/{TEST}.json"
MATCHES = f"matches/{B}/frozen/{TEST}"
ONE = {f"evaluate@{B}-frozen-{TEST}-argmax"} | DRAW
EMPTY_MODULE = '"""Something new."""\n'


@contextlib.contextmanager
def _new_modules(*names: str) -> Iterator[None]:
    """A readout, a loss, a family and a format that nothing uses."""
    with contextlib.ExitStack() as there:
        for name in names:
            there.enter_context(_edited(PACKAGE / f"{name}.py", EMPTY_MODULE))
        yield


def _bare(source: str) -> str:
    """A module without comments, laid out anew."""
    return ast.unparse(ast.parse(source))


@contextlib.contextmanager
def _outputs(change: Callable[[Path], None], *paths: str) -> Iterator[None]:
    """Outputs changed by `change`, each as files of their own, since DVC's cache may hold the same ones."""
    kept = Path(tempfile.mkdtemp(dir="."))
    for number, path in enumerate(map(Path, paths)):
        place = kept / str(number)
        shutil.move(path, place)
        shutil.copytree(place, path) if place.is_dir() else shutil.copy(place, path)
        change(path)
    yield
    for number, path in enumerate(map(Path, paths)):
        remove(path)
        shutil.move(kept / str(number), path)


def _times(when: float) -> Callable[[Path], None]:
    return lambda path: [os.utime(file, (when, when)) for file in [path, *path.rglob("*")]]


ALL = ("data", "features", "checkpoints", "matches", "metrics")
PACKAGE = Path("semcorr")
FILES = PACKAGE / "artifacts/files.py"
# What happens beside params.yaml and the package's code -> what runs again, in both engines.
SITUATIONS: dict[str, tuple[Callable[[], contextlib.AbstractContextManager], set[str]]] = {
    "a comment": (lambda: _edited(FILES, f"# new\n{FILES.read_text()}"), NOTHING),
    "bare code": (lambda: _edited(PACKAGE / "matching.py", _bare((PACKAGE / "matching.py").read_text())), NOTHING),
    "new modules": (
        lambda: _new_modules("readouts/kernel", "networks/losses/triplet", "networks/backbones/clip", "datasets/coco"),
        NOTHING,
    ),
    "no notes": (lambda: _outputs(remove, ".semcorr/notes"), NOTHING),
    "no memory": (lambda: _outputs(remove, ".semcorr/memory.json", ".semcorr/markers"), NOTHING),
    "touched": (lambda: _outputs(_times(time.time()), *ALL), NOTHING),
    "from the future": (lambda: _outputs(_times(time.time() + 86_400), *ALL), NOTHING),
    "from long ago": (lambda: _outputs(_times(1), "matches", "metrics"), NOTHING),
    "a cell by hand": (lambda: _outputs(lambda path: path.write_text(path.read_text() + " "), CELL), ONE),
    "a cell of the future by hand": (lambda: _outputs(lambda p: (p.write_text("{}"), _times(4e9)(p)), CELL), ONE),
    "half a store": (
        lambda: _outputs(lambda path: os.truncate(path, 1000), f"features/{B}/frozen/{TEST}.h5"),
        EXTRACT,
    ),
    "no features": (lambda: _outputs(remove, "features"), EXTRACT | TRUNK),
    "an image edited": (
        lambda: _outputs(lambda path: next(path.rglob("*.jpg")).write_bytes(b"x"), f"data/{TEST}/images"),
        FETCH_TEST,
    ),
    "an image added": (
        lambda: _outputs(lambda path: (path / "new.jpg").write_bytes(b"x"), f"data/{TEST}/images"),
        FETCH_TEST,
    ),
    "no gallery": (lambda: _outputs(remove, GALLERY), {f"draw@{B}-frozen-{TEST}"} | REPORT),
    "matches of another rule": (
        lambda: _outputs(lambda path: shutil.copy(f"{MATCHES}/argmax.parquet", path), f"{MATCHES}/softargmax.parquet"),
        {f"{stage}@{B}-frozen-{TEST}-softargmax" for stage in ("match", "evaluate")} | DRAW,
    ),
    "a number that git keeps": (
        lambda: _outputs(lambda path: path.write_text("x"), "metrics/smoke/summary.csv"),
        {"headline"},
    ),
    "no summary": (lambda: _outputs(remove, "metrics/smoke/summary.csv"), {"headline"}),
}


@pytest.mark.pipeline
def test_all_agree_in_every_situation(finished, monkeypatch):
    """The function, Snakemake and DVC, on a finished experiment to which something happens."""
    monkeypatch.chdir(finished.root)
    monkeypatch.setattr(code, "ROOT", finished.root)
    wrong: list[str] = []
    repo = Repo(".")
    for what, (happens, expected) in SITUATIONS.items():
        with happens():
            _compare(what, expected, wrong, repo)
    _compare("back again", set(), wrong, repo)
    assert not wrong, "\n".join(wrong)


def _changed(module: str) -> contextlib.AbstractContextManager:
    """A module or template that does something else while the block runs."""
    path = Path("semcorr") / module
    return _edited(path, path.read_text() + ("\n_CHANGED = 1\n" if path.suffix == ".py" else " "))


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
    """An edit to an image of a dataset's own folder and to a network's file, in both engines; then both are gone."""
    project = clone("smoke")
    project.edit(_from_this_machine)
    monkeypatch.chdir(project.root)
    toy.write_pfwillow(Path("mine/willow"), 3, {"all": 2})
    torch.save(build(params.load().backbones[B]).net.state_dict(), "mine/net.pth")
    fetch, weights = "fetch@toy_willow", f"weights@{B}-frozen"
    outputs = ("data/toy_willow/images.parquet", f"data/weights/{B}/frozen.safetensors")
    project.run("snakemake", "--cores", "all", "--", *outputs)
    repo = Repo(".")
    rest = planned_by_dvc(repo)  # what was not made
    assert len(rest) == 8
    assert not rest & {fetch, weights}
    wrong: list[str] = []
    _compare("nothing", rest, wrong, repo)
    for path, stage in ((next(Path("mine/willow").rglob("*.png")), fetch), (Path("mine/net.pth"), weights)):
        shutil.copy2(path, "kept")
        path.write_bytes(path.read_bytes() + b" ")
        _compare(path.name, rest | {stage}, wrong, repo)
        shutil.move("kept", path)
    _compare("back again", rest, wrong, repo)
    Path("mine/net.pth").rename("mine/other.pth")
    Path("mine/willow").rename("mine/elsewhere")
    _compare("gone", rest, wrong, repo)  # what was made of them is as right as before
    assert not wrong, "\n".join(wrong)
    Path(outputs[0]).unlink()
    said = project.run("snakemake", "--cores", "1", "--", outputs[0], expect=1)
    assert "mine/willow: gone since this was made. Bring it back; or remove data/basis" in said


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
    package = ROOT / "semcorr"
    files = {path.relative_to(package).as_posix() for path in (*package.rglob("*.py"), *package.rglob("templates/*"))}
    assert files == MODULES.keys()
