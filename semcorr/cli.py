"""The command line: one verb per stage, which both engines run in the project's folder, and a few for users.

Heavy modules are imported inside the commands, so that --help and the light verbs respond at once.
"""

import argparse
import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from semcorr import __version__, params
from semcorr.artifacts.files import replacing, write_json, write_text
from semcorr.artifacts.provenance import expect
from semcorr.engine import graph, project, shipped
from semcorr.engine.at_work import at_work
from semcorr.engine.current import Current, noted
from semcorr.engine.dvc_sync import forget_links
from semcorr.errors import UserError
from semcorr.networks.published import DEFAULT, PUBLISHED, cache, is_here
from semcorr.report import keys
from semcorr.report.plain import plain

# These concern the project around this folder.
PROJECT_VERBS = ("fix", "plan", "table", "compare", "verify", "schema", "export")
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # suffix -> Pillow's format

STAGE_HELP = {
    "validate": "check params.yaml",
    "fetch": "get a dataset: its images, and an index of images and of pairs",
    "weights": "get a backbone's tensors",
    "extract": "compute the features of every image of a dataset",
    "trunk": "compute the input of the tuned blocks for every image of a dataset",
    "finetune": "fine-tune the last blocks of a backbone",
    "adapt": "compute a tuned backbone's features",
    "fuse": "join the features of two backbones",
    "match": "predict the target keypoints of every pair",
    "evaluate": "compute the PCK of one cell",
    "draw": "draw a few pairs of each category, and similarity maps",
    "layers": "measure every layer of a backbone in one pass: to choose `layer`; its cells are in grid.layers",
    "report": "write the tables and the HTML page of all cells",
    "headline": "write the numbers kept in git: a file per cell, and summary.csv",
}
KEYS = Path("docs/keys.md")
AXIS_HELP = {
    "backbone": "a name under `backbones` or `fusions`",
    "fusion": "a name under `fusions`",
    "weights": "frozen, random, or a tuning",
    "tuning": "a name under `tunings`",
    "dataset": "a name under `datasets`",
    "rule": "a name under `rules`",
}


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="semcorr",
        description="Semantic correspondence with visual foundation models. params.yaml holds the whole experiment; "
        "`dvc repro` or `snakemake --cores all` brings it up to date by running the stages below.",
    )
    top.add_argument("--version", action="version", version=f"semcorr {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    verb = verbs.add_parser("init", help="make a project folder of your own, for either engine")
    verb.add_argument("folder", type=Path, help="a new or empty folder")
    verb.add_argument("--preset", default="demo", help="its experiment: a preset or the path of a file; default demo")
    verb = verbs.add_parser("preset", help="switch to an experiment in workflow/presets (writes params.yaml)")
    verb.add_argument("name", help="demo, smoke, pfwillow, ... or the path of a file")
    verb.add_argument("--force", action="store_true", help="replace params.yaml even if it is saved nowhere else")
    changes = "change some of its keys, such as datasets.pfwillow.sources.0.path=/data/PF-dataset"
    verb.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=changes)
    verb = verbs.add_parser("run", help="run the current experiment, or that of a preset, and print its results")
    verb.add_argument("preset", nargs="?", help="switch to this preset first, as `semcorr preset` does")
    verb.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=changes)
    verb.add_argument("--force", action="store_true", help="replace params.yaml even if it is saved nowhere else")
    verb.add_argument("--engine", choices=("dvc", "snakemake"), default="dvc", help="default dvc; or snakemake")
    verb = verbs.add_parser("check", help="verify a dataset: every file, every split, all counts")
    verb.add_argument("dataset", help="a name under `datasets`, or the path of a folder or archive in a known format")
    verb.add_argument("--expect", default="any", help="for a path: spair71k, pfwillow, pfpascal or any (default)")
    verb.add_argument("--categories", nargs="+", metavar="NAME", help="count only pairs of these categories")
    verb = verbs.add_parser("store", help="describe a feature store and verify it")
    verb.add_argument("path", type=Path, help="features/<backbone>/<weights>/<dataset>.h5")
    verb = verbs.add_parser(
        "compare",
        help="test whether one cell is better than another, by a paired bootstrap",
        description="Test whether one cell is better than another, by a paired bootstrap. A cell is named by any of "
        "its parts, such as `last2` or `last2/softargmax`. What one side leaves out is as on the other; what both "
        "leave out takes each value of the grid in turn.",
    )
    verb.add_argument("first", help="[<git revision>:]<parts>; in full, <backbone>/<weights>/<dataset>/<rule>")
    verb.add_argument("second", help="the cell to compare it with, likewise")
    verb.add_argument("--threshold", help="shown in the table; default evaluate.headline, such as PCK@0.10")
    verb.add_argument("--json", type=Path, help="also write all thresholds to this file")
    verb = verbs.add_parser("verify", help="hold the current results against known ones: ours, and the literature's")
    verb.add_argument("--all", action="store_true", help="show the literature beside results on drawn images too")
    match = verbs.add_parser(
        "match-images",
        help="find points of one image in another",
        description="Find points of one image in another and print them as `x,y -> x,y similarity`. Without --points "
        "or --grid, find all mutual nearest neighbours. Points are in pixels of the upright image.",
    )
    match.add_argument("source", type=Path, metavar="SRC", help="an image of any common format and size")
    match.add_argument("target", type=Path, metavar="TGT", help="the image to search")
    points = "points of SRC, such as 120,80 64.5,30; after SRC and TGT"
    match.add_argument("--points", nargs="+", action="extend", type=_point, metavar="X,Y", help=points)
    match.add_argument("--grid", type=int, metavar="N", help="N x N points spread evenly over SRC")
    match.add_argument("--mutual", action="store_true", help="keep only matches that map back to within a cell")
    lowest = (
        "lowest similarity to keep, -1 to 1; default: all asked points, and of those found by themselves the ones from "
        "the cosine on that had the best F1 where the network was evaluated, if it was"
    )
    match.add_argument("--min-similarity", type=float, metavar="COSINE", help=lowest)
    part = "search only where this mask of TGT, an image of its size, is not 0"
    match.add_argument("--target-mask", type=Path, metavar="MASK", help=part)
    match.add_argument("--out", type=Path, help="write a picture of the matches: .png, .jpg or .webp")
    dense = "make --out show the two objects instead, with similar features in similar colours"
    match.add_argument("--dense", action="store_true", help=dense)
    match.add_argument("--json", type=Path, help="also write the matches to this file; - prints them instead of lines")
    found = verbs.add_parser(
        "find",
        help="find the points of a few labelled images in all images of a folder",
        description="Find the points of a few labelled images in every other image of a folder. The labels are a COCO "
        "keypoints file, as labelling tools export it, and so is the result, which they open. Points are in pixels of "
        "the upright image.",
    )
    found.add_argument("labels", type=Path, metavar="LABELS.json", help="a COCO keypoints file of labelled images")
    found.add_argument("folder", type=Path, metavar="FOLDER", help="the images to search; labelled ones are left out")
    found.add_argument("--out", type=Path, required=True, metavar="FOUND.json", help="the file to write")
    where = "the folder of the labelled images; default: that of LABELS.json, or `images` in it"
    found.add_argument("--images", type=Path, metavar="DIR", help=where)
    found.add_argument("--category", metavar="NAME", help="of LABELS.json, if several have keypoints")
    combine = "with several labelled images, the mean of their descriptors (default), or the nearest of them"
    found.add_argument("--combine", choices=("mean", "nearest"), default="mean", help=combine)
    lowest = "cosine below which a point counts as not there; default: all count as there"
    found.add_argument("--min-similarity", type=float, metavar="COSINE", help=lowest)
    shown = "also write a picture of each image, beside a labelled one, into this new or empty folder"
    found.add_argument("--pictures", type=Path, metavar="DIR", help=shown)
    page = verbs.add_parser("serve", help="serve a local page where a click on an image finds the matching point")
    page.add_argument("source", type=Path, nargs="?", metavar="SRC", help="the left image; or choose it on the page")
    page.add_argument("target", type=Path, nargs="?", metavar="TGT", help="the right image")
    page.add_argument("--port", type=int, default=8000, help="default 8000")
    network = (
        f"from `semcorr backbones` or this folder's project, or an exported folder; default the project's first, or "
        f"{DEFAULT}"
    )
    rule = "argmax, kernel_softargmax or softargmax (default), or a rule of the project (default its first)"
    weights = "frozen (default), or a baseline or tuning of the project"
    size = "longer side of the network's input; default the network's own"
    for verb in (match, found, page):
        verb.add_argument("--backbone", help=network)
        verb.add_argument("--weights", default="frozen", help=weights)
        verb.add_argument("--rule", help=rule)
        verb.add_argument("--image-size", type=int, metavar="PIXELS", help=size)
    verb = verbs.add_parser("export", help="write a tuned backbone as a folder that is used anywhere")
    verb.add_argument("name", help="<backbone>/<tuning>, such as dinov2_b14/last2")
    verb.add_argument("folder", type=Path, help="a new or empty folder")
    whole = "also write the tensors that were tuned; default: whoever uses it gets them from their source"
    verb.add_argument("--whole", action="store_true", help=whole)
    verbs.add_parser("backbones", help="list the available networks: size, licence, source, and whether downloaded")
    verbs.add_parser("fix", help="set the keys of params.yaml that follow from others, such as grid.weights")
    verb = verbs.add_parser("plan", help="print what would run and why, with estimates of time and disk space")
    verb.add_argument("preset", nargs="?", help="a name in workflow/presets, or a file; default params.yaml")
    verb.add_argument("--jobs", action="store_true", help="a line per job instead of per stage")
    verb.add_argument("--tflops", type=float, help="speed of the intended machine; default: measure this one")
    verb = verbs.add_parser("table", help="print the current experiment's results and the path of its report")
    kinds = "text (default), or for a paper markdown or latex; bold: the best, and any not significantly worse"
    verb.add_argument("--format", choices=("text", "markdown", "latex"), default="text", help=kinds)
    verbs.add_parser("schema", help=f"write {params.SCHEMA}, the JSON schema of params.yaml")
    for stage, row in graph.STAGES.items():
        words = STAGE_HELP[stage]
        verb = verbs.add_parser(stage, help=f"stage: {words}", description=f"{words[0].upper()}{words[1:]}.")
        for axis in row.axes:
            verb.add_argument(axis, help=AXIS_HELP[axis])
    return top


def main(arguments: list[str] | None = None) -> None:
    """Run one verb. Problems that the user can fix are printed one per line, with exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    warnings.filterwarnings("ignore", module="PIL")  # about odd tags and large images
    options = parser().parse_args(arguments)
    try:
        if isinstance(getattr(options, "json", None), Path) and options.json != Path("-"):
            options.json = options.json.absolute()  # before the folder is changed
        if options.verb == "export":
            options.folder = options.folder.absolute()
        if options.verb in graph.STAGES or options.verb in PROJECT_VERBS:
            _enter_project()
        if options.verb in graph.STAGES:
            print(run_stage(options))
        else:
            VERBS[options.verb](options)
        sys.stdout.flush()
    except UserError as error:
        print(f"semcorr {options.verb}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:  # an unreadable folder, a name that is too long
        if error.filename is None:
            raise
        print(f"semcorr {options.verb}: {error.filename}: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None


def _enter_project() -> None:
    """Change to the folder of the project that contains the current one, if any."""
    if not params.PARAMS_FILE.exists() and (path := params.find_project()) is not None:
        os.chdir(path.parent)


def run_stage(options: argparse.Namespace) -> str:
    """Run one stage on one cell and return a line that says what it did."""
    experiment = graph.Graph(params.load())
    job = experiment.job(options.verb, *(getattr(options, axis) for axis in graph.STAGES[options.verb].axes))

    def stage() -> str:
        function = getattr(importlib.import_module(f"semcorr.stages.{options.verb}"), options.verb)
        return function(job, experiment.view(job))

    if "TORCHELASTIC_RUN_ID" in os.environ:  # a process that the job itself has launched
        return stage()
    if job.stage == "validate":
        with at_work(job.command, alone="DVC_STAGE" in os.environ):
            return stage()
    with at_work(job.command), noted(job, experiment):
        summary = stage()
    if job.stage == "headline" and "DVC_STAGE" in os.environ:  # the last stage
        forget_links()
    return summary


def init(options: argparse.Namespace) -> None:
    """Make a project folder."""
    new_repository = project.create(options.folder, options.preset)
    git = ", and a git repository" if new_repository else ""
    print(f"{options.folder}: a project with preset {options.preset}{git}; its README.md says what to do next")


def preset(options: argparse.Namespace) -> None:
    """Replace params.yaml by a preset, after validating it."""
    path = Path(options.name)
    name = str(path.resolve()) if path.suffix in (".yaml", ".yml") and path.is_file() else options.name
    _enter_project()
    path, file = _preset(name), params.PARAMS_FILE
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    params.load(path)
    text = params.placed(path.read_text(encoding="utf-8"))
    before = params.leaves(params.read_text(text, path))
    if options.set:
        text, _ = params.fill_in(params.apply_changes(text, options.set, str(path)), f"{path} with --set")
    after = params.leaves(params.read_text(text, path))
    params.validate(params.read_text(text, path), where=str(path))
    replaced = file.exists() and file.read_text(encoding="utf-8", errors="replace") != text
    if replaced and not options.force and not _is_kept(file):
        raise UserError(
            f"{file} has changes that are neither a preset nor committed. Commit or copy it, or use --force, which "
            f"keeps it as {file}.bak"
        )
    with at_work("semcorr preset", alone=True):
        if replaced:
            shutil.copyfile(file, f"{file}.bak")
        write_text(file, text)
        forget_links()
    changes = [f"{key}={value}" for key, value in after.items() if before.get(key, ...) != value]
    changed = f" with {', '.join(changes)}" if changes else ""  # an alias may have repeated a change elsewhere
    print(f"params.yaml is now {path}{changed}. To run it: semcorr run (or dvc repro, or snakemake --cores all)")


def _is_kept(file: Path) -> bool:
    """Whether a params.yaml is what a preset makes it, or identical to its committed version."""
    content = file.read_bytes()
    presets = (preset.read_text(encoding="utf-8", errors="replace") for preset in _presets())
    if any(content == params.placed(preset).encode() for preset in presets):
        return True
    committed = subprocess.run(["git", "show", f"HEAD:./{file}"], capture_output=True, check=False)
    return committed.returncode == 0 and committed.stdout == content


def fix(_: argparse.Namespace) -> None:
    """Fill in the keys of params.yaml that follow from others."""
    file = params.PARAMS_FILE
    text = params.read_file(file)
    new, changes = params.fill_in(text, str(file))
    if changes:
        with at_work("semcorr fix", alone=True):
            write_text(file, new)
    print("\n".join(changes) if changes else f"{file}: nothing to fix")
    _hint(params.load(), file)


def _hint(values: params.Params, file: Path) -> None:
    """Say which entries of a file nothing uses."""
    if values.unused:
        print(f"{file}: the grid does not use {', '.join(values.unused)}", file=sys.stderr)


def _preset(name: str) -> Path:
    """The file of a preset, by its name or path."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = next((preset for preset in _presets() if preset.stem == name), path)
    if not path.is_file():
        known = ", ".join(sorted(preset.stem for preset in params.PRESETS.glob("*.yaml")))
        if not known:
            shipped_names = ", ".join(preset.stem for preset in _presets())
            known = f"none; are you in the project? (semcorr ships with {shipped_names})"
        raise UserError(f"{name}: no such preset; allowed: {known}, or the path of a .yaml file")
    return path


def _presets() -> list[Path]:
    """The project's presets, then those that semcorr ships with."""
    return [path for root in (Path(), shipped.folder()) for path in sorted((root / params.PRESETS).glob("*.yaml"))]


def plan(options: argparse.Namespace) -> None:
    """Print what would run."""
    from semcorr.engine.plan import plan
    from semcorr.networks import architectures

    if options.tflops is not None and not options.tflops > 0:
        raise UserError(f"--tflops {options.tflops}: allowed: more than 0")
    file = _preset(options.preset) if options.preset else params.PARAMS_FILE
    values = params.load(file)
    _hint(values, file)
    architectures.check(values)
    print("\n".join(plan(values, tflops=options.tflops, every=options.jobs)))


def run(options: argparse.Namespace) -> None:
    """Bring the experiment up to date, showing how far it is, and print its results."""
    from semcorr.engine import run as runs
    from semcorr.engine import warm

    _enter_project()
    runs.require_project(options.engine)
    if options.preset:
        preset(argparse.Namespace(name=options.preset, set=options.set, force=options.force))
    elif options.set:
        raise UserError("--set: put the preset, whose keys it changes, before it; or edit params.yaml")
    values = params.load()
    if options.engine == "dvc":
        project.require_dvcs_keys(values)
    for lock in runs.repair():
        print(f"{lock}: removed, since the process that held it was killed")
    if Current(graph.Graph(values)).stale:
        progress = runs.Progress(*runs.planned(values, options.engine), _show)
        _show(f"{values.preset}: {progress} ({options.engine})")
        try:
            with warm.kept() as environment:
                runs.run(options.engine, progress, _show, environment)
        except KeyboardInterrupt:
            print(f"Stopped. To continue: {runs.again(options.engine)}", file=sys.stderr)
            raise
    else:
        print("Everything is up to date.")
    table(argparse.Namespace(format="text"))


def _show(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


def check(options: argparse.Namespace) -> None:
    """Verify a dataset of params.yaml, or a folder or archive, and print a summary."""
    from semcorr.datasets import verify
    from semcorr.datasets.sources import open_path, provide

    path = Path(options.dataset)
    if path.exists():
        folder = open_path(path)
        spec = verify.recognise(folder, options.expect)
    else:
        _enter_project()
        datasets = params.load().datasets
        if options.dataset not in datasets:
            known = ", ".join(datasets)
            raise UserError(f"{options.dataset}: neither a path nor a name under `datasets`: {known}")
        spec = datasets[options.dataset]
        folder = provide(spec, options.dataset)
    if options.categories:
        spec = spec.model_copy(update={"categories": options.categories})
    print("\n".join(verify.check(spec, folder)))
    print(verify.conclusion(spec, folder))


def store(options: argparse.Namespace) -> None:
    """Describe a feature store and verify it."""
    from semcorr.artifacts.store import describe

    print("\n".join(describe(options.path)))


def compare(options: argparse.Namespace) -> None:
    """Print the difference between two cells, overall and per category."""
    from semcorr import pck
    from semcorr.report import compare

    if options.json and (options.json.is_dir() or not options.json.parent.is_dir()):
        raise UserError(f"--json {options.json}: give the name of a file in a folder that exists")
    values = params.load()
    known = [pck.threshold_key(threshold) for threshold in values.evaluate.thresholds]
    shown = options.threshold or pck.threshold_key(values.evaluate.headline)
    if shown not in known:
        raise UserError(f"--threshold {options.threshold}: not among evaluate.thresholds; allowed: {', '.join(known)}")
    rows = compare.compare(options.first, options.second, values)
    result = {"first": options.first, "second": options.second, "rows": rows}
    if options.json == Path("-"):
        print(json.dumps(result, indent=2))
        return
    print(compare.table(rows, shown))
    print(compare.method(values.evaluate))
    if options.json:
        write_json(options.json, result)


def verify(options: argparse.Namespace) -> None:
    """Print how the current results compare with known ones; exit code 1 if one of our own is missed."""
    from semcorr.report import references

    known = references.read(references.find(references.FILE))
    text, passed = references.verify(params.load(), known, drawn=options.all)
    print(text)
    if not passed:
        raise SystemExit(1)


def _point(text: str) -> tuple[float, float]:
    """The argument X,Y."""
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a point; write X,Y such as 120,80") from None
    return x, y


def match_images(options: argparse.Namespace) -> None:
    """Match two images; print, draw and write the matches."""
    if options.out and options.out.suffix.lower() not in PICTURES:
        raise UserError(f"--out {options.out}: allowed: names ending in {', '.join(PICTURES)}")
    printed = options.json == Path("-")
    for name, path in (("--out", options.out), ("--json", None if printed else options.json)):
        if path and (path.is_dir() or not path.parent.is_dir()):  # fail before the work, not after it
            raise UserError(f"{name} {path}: {'is a folder' if path.is_dir() else f'there is no folder {path.parent}'}")
    if options.dense and not options.out:
        raise UserError("--dense: needs --out, the picture to write")
    from semcorr.api import images

    source, target = map(images.open_image, (options.source, options.target))
    images.points_on(source, options.points, options.grid)  # a mistake is said before a network is loaded
    matcher = images.Matcher(options.backbone, options.weights, options.rule, image_size=options.image_size)
    asked = options.points is not None or options.grid is not None
    measured = matcher.min_similarity() if options.min_similarity is None else None
    lowest = options.min_similarity if asked or measured is None else measured
    matches = images.match_images(
        source,
        target,
        options.points,
        grid=options.grid,
        mutual=options.mutual,
        min_similarity=lowest,
        target_mask=options.target_mask,
        matcher=matcher,
    )
    if measured is not None:
        few = int((matches.similarity < measured).sum())
        if not asked:
            said = f"only matches of cosine {measured:.3f} or more, as measured; --min-similarity -1 keeps all"
            print(said, file=sys.stderr)
        elif few:
            said = f"{few} of {len(matches.similarity)} points: less similar than {measured:.3f}"
            print(f"{said}, the cosine that was measured: they may not be there", file=sys.stderr)
    rows = zip(matches.source_points, matches.target_points, matches.similarity, strict=True)
    for start, end, similarity in () if printed else rows:
        print("{:.1f},{:.1f} -> {:.1f},{:.1f} {:.3f}".format(*start, *end, similarity))
    if not len(matches.source_points):
        print("no match was kept: see --min-similarity and --mutual", file=sys.stderr)
    if options.out:
        with replacing(options.out) as partial:
            (matches.dense() if options.dense else matches.picture()).save(
                partial, PICTURES[options.out.suffix.lower()]
            )
    values = {"source": str(options.source), "target": str(options.target), **matches.to_dict()}
    if printed:
        print(json.dumps(values, indent=2))
    elif options.json:
        write_json(options.json, values)


def find(options: argparse.Namespace) -> None:
    """Find labelled points in a folder of images, and write and draw them."""
    for name, path in (("--out", options.out), ("--pictures", options.pictures)):  # fail before the work, not after it
        if path and not path.parent.is_dir():
            raise UserError(f"{name} {path}: there is no folder {path.parent}")
    if options.out.exists():  # perhaps labels that someone has made or corrected
        what = "is a folder" if options.out.is_dir() else "exists. Choose another name, or remove it first"
        raise UserError(f"--out {options.out}: {what}")
    taken = options.pictures and options.pictures.exists()
    if taken and (not options.pictures.is_dir() or any(options.pictures.iterdir())):
        raise UserError(f"--pictures {options.pictures}: exists, and is no empty folder")
    if options.min_similarity is not None and not -1 <= options.min_similarity <= 1:
        raise UserError(f"--min-similarity {options.min_similarity:g}; allowed: -1 to 1, a cosine")
    from semcorr.api import find as finding
    from semcorr.api.images import Matcher
    from semcorr.artifacts.progress import progress
    from semcorr.datasets.decode import stored_orientation

    labels = finding.Labels.read(options.labels, options.images, options.category)
    files = finding.targets(options.folder, labels)
    matcher = Matcher(options.backbone, options.weights, options.rule, image_size=options.image_size)
    support = finding.Support(labels.images, combine=options.combine, matcher=matcher)

    turned = sum(stored_orientation(path) != 1 for path in files)

    def each(shown: Path | None) -> Iterator[tuple[str, finding.Found]]:
        for path in progress(files, unit="image", desc="find"):
            found = support.find(path)
            if shown is not None:
                picture = support.picture(found, min_similarity=options.min_similarity)
                picture.save(shown / f"{path.name}.jpg", quality=90)
            yield path.name, found

    if options.pictures:
        with replacing(options.pictures) as partial:
            partial.mkdir()
            values = finding.annotations(labels, each(partial), options.min_similarity)
    else:
        values = finding.annotations(labels, each(None), options.min_similarity)
    write_json(options.out, values)
    left_out = [f"{count:,} {what} left out" for what, count in labels.left_out.items()]
    if turned:
        left_out.append(f"{turned:,} images are turned by their EXIF data, and so are their points")
    for line in left_out:
        print(line, file=sys.stderr)
    count = sum(one["num_keypoints"] for one in values["annotations"])
    print(
        f"{options.out}: {count:,} of {len(support.names) * len(files):,} points of category {labels.category} in "
        f"{len(files):,} images, from {len(labels.images)} labelled objects"
    )


def serve(options: argparse.Namespace) -> None:
    """Serve the page on this machine until interrupted."""
    if not 0 <= options.port <= 65535:
        raise UserError(f"--port {options.port}: allowed: 0 to 65535")
    from werkzeug.serving import make_server

    from semcorr.api.images import Matcher
    from semcorr.api.serve import Patient, application

    files = {side: path for side in ("source", "target") if (path := getattr(options, side))}
    matcher = Matcher(options.backbone, options.weights, options.rule, image_size=options.image_size)
    app = application(matcher, files)
    try:
        server = make_server("127.0.0.1", options.port, app, threaded=True, request_handler=Patient)
    except (OSError, SystemExit):  # werkzeug exits if the port is taken
        raise UserError(f"--port {options.port}: in use or not permitted. Choose another") from None
    print(f"http://127.0.0.1:{server.server_port}/ (Ctrl+C to stop)", flush=True)
    server.serve_forever()


def export(options: argparse.Namespace) -> None:
    """Write a tuned backbone as a folder."""
    from semcorr.api.export import export as write

    exported = write(options.name, options.folder, options.whole)
    size = sum(path.stat().st_size for path in exported.folder.iterdir()) / 1e6
    print(f"{exported.folder}: {exported.name}, {size:,.0f} MB; use it as --backbone {exported.folder}")


def backbones(_: argparse.Namespace) -> None:
    """Print the published networks, and the project's own if this folder is in a project."""
    head = ("name", "network", "download", "licence", "here", "source")
    rows = [
        (name, net.spec.model, f"{net.size / 1e6:,.0f} MB", net.licence, "yes" if is_here(net) else "no", net.source)
        for name, net in PUBLISHED.items()
    ]
    path = params.find_project()
    if path is not None:
        values = params.load(path)
        for name in values.grid.backbones:
            tensors = graph.Graph(values).job("weights", name, values.grid.baselines[0]).outputs["tensors"]
            here = "yes" if (path.parent / tensors).exists() else "no"
            rows.append((name, values.backbones[name].model, "", "", here, f"{path}: backbones.{name}"))
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\nDownloads are kept in {cache()}, timm's in its hub's cache.")


def table(options: argparse.Namespace) -> None:
    """Print the current experiment's results."""
    experiment = graph.Graph(params.load())
    job = experiment.job("report")
    written = job.outputs["latex" if options.format == "latex" else "markdown"]
    if not written.exists():
        raise UserError(f"{written}: not made yet. Run: dvc repro (or snakemake --cores all)")
    expect(job.outputs["html"], job.fingerprint)
    if why := Current(experiment).stale.get(job.name):
        print(f"Not up to date: {why}; see semcorr plan", file=sys.stderr)
    text = written.read_text(encoding="utf-8")
    if options.format != "text":
        print(text, end="")
        return
    try:
        print(plain(text))
    except (ValueError, IndexError):
        raise UserError(f"{written}: damaged. Make it again: semcorr run") from None
    print(f"Report: {job.outputs['html']}")


def schema(_: argparse.Namespace) -> None:
    """Write the JSON schema of params.yaml, for editors."""
    if not params.SCHEMA.parent.is_dir():
        raise UserError(f"{params.SCHEMA.parent}: no such folder; run this in a project")
    write_text(params.SCHEMA, json.dumps(params.Params.model_json_schema(), indent=2) + "\n")
    print(params.SCHEMA)
    if KEYS.exists():  # in semcorr's own repository
        write_text(KEYS, keys.reference())
        print(KEYS)


FUNCTIONS = (
    *(init, preset, run, check, store, compare, verify, match_images, find, serve, export, backbones),
    *(fix, plan, table, schema),
)
VERBS = {function.__name__.replace("_", "-"): function for function in FUNCTIONS}
