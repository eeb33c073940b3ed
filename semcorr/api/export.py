"""Tuned networks that travel: a folder with the tuned tensors, their backbone's entry, and a model card.

`backbone.json` is the entry of params.yaml and the digest of the tensors that were tuned. Whoever opens the folder gets
those from their own source, and the tuned ones are laid over them only if the digest is the same.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from pydantic import ValidationError

from semcorr import __version__, params
from semcorr.artifacts import provenance
from semcorr.artifacts.files import replacing, sha256, write_json, write_text
from semcorr.datasets.download import download
from semcorr.engine import graph
from semcorr.errors import UserError, one_of
from semcorr.networks.backbones import digest, overlay, read, require_tuned_for, save
from semcorr.networks.backbones.base import Backbone
from semcorr.networks.backbones.weights import get
from semcorr.networks.published import PUBLISHED, cache
from semcorr.params import BackboneSpec, FileWeights, Params, is_import_path

ENTRY, TENSORS, BASE, CARD = "backbone.json", "model.safetensors", "base.safetensors", "README.md"
FORMAT = 1


class _Entry(msgspec.Struct, gc=False):
    """What `backbone.json` holds."""

    format: int
    name: str
    backbone: dict[str, Any]
    tensors: str  # SHA-256 of model.safetensors
    base: str  # digest of the tensors that were tuned, by name and value


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A folder written by `export`, checked.

    Attributes:
        folder: it.
        name: backbone and tuning that it was made from, such as "dinov2_b14/last2".
        spec: its backbone's entry.
        base: digest of the tensors that were tuned.
    """

    folder: Path
    name: str
    spec: BackboneSpec
    base: str

    def network(self) -> Backbone:
        """The tuned network; its base tensors come from their source, or from the folder.

        Raises:
            UserError: they are unavailable, or not those that were tuned.
        """
        network, _ = get(self.spec, self.spec.weights, cache())
        found = digest(network.net.state_dict())
        if found != self.base:
            raise UserError(f"{self.folder}: was tuned from other tensors than those of its source ({found[:12]})")
        overlay(network, self.folder / TENSORS, found)
        require_tuned_for(self.spec, self.folder / TENSORS)
        network.channels(self.spec)  # raises if its head does not fit
        return network.at(self.spec)


def is_exported(source: str | Path) -> bool:
    """Whether a name is that of a folder written by `export`, or an address of one."""
    return str(source).startswith(("http://", "https://")) or (Path(source) / ENTRY).is_file()


def opened(source: str | Path) -> Exported:
    """Open a folder written by `export`, or download one.

    Args:
        source: the folder, or its address: what comes before `/backbone.json`.

    Raises:
        UserError: it is no such folder, a file is damaged, or the download fails.
    """
    folder = Path(source)
    if str(source).startswith(("http://", "https://")):
        folder = _downloaded(str(source).rstrip("/"))
    path = folder / ENTRY
    try:
        content = path.read_bytes()
        entry = msgspec.json.decode(content, type=_Entry)
        if entry.format != FORMAT:
            raise UserError(f"{path}: format {entry.format}, this version reads {FORMAT}")
        spec = BackboneSpec.model_validate(entry.backbone)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a folder written by `semcorr export` has one") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not an exported backbone ({error})") from None
    except ValidationError as error:
        raise UserError(f"{path}: backbone: {params.explain(error)}") from None
    if is_import_path(spec.family):  # a folder is data: opening it must not run what it names
        raise UserError(f"{path}: family {spec.family!r} names code; allowed: a family of semcorr")
    if not (folder / TENSORS).is_file():
        raise UserError(f"{folder / TENSORS}: is missing. Get the folder again")
    if (found := sha256(folder / TENSORS)) != entry.tensors:
        raise UserError(f"{folder / TENSORS}: its sha256 is {found}, {ENTRY} expects {entry.tensors}. It was not used")
    if isinstance(spec.weights, FileWeights):  # a path of someone else's machine may be anything
        if spec.weights.path != BASE or spec.weights.sha256 is None:
            raise UserError(
                f"{path}: weights: path {spec.weights.path!r}; allowed: {BASE} of the folder, with its sha256"
            )
        weights = spec.weights.model_copy(update={"path": str((folder / BASE).resolve())})
        spec = spec.model_copy(update={"weights": weights})
    return Exported(folder=folder, name=entry.name, spec=spec, base=entry.base)


def _downloaded(address: str) -> Path:
    """The folder at an address, in the user's cache; its entry is downloaded anew, its tensors if they changed."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = download([f"{address}/{ENTRY}"], None, Path(scratch) / ENTRY)
        except UserError as error:
            raise UserError(str(error).partition(". Or put the file")[0]) from None
        try:
            entry = msgspec.json.decode(path.read_bytes(), type=_Entry)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UserError(f"{address}/{ENTRY}: not an exported backbone ({error})") from None
        if len(entry.tensors) != 64 or not entry.tensors.isalnum():
            raise UserError(f"{address}/{ENTRY}: tensors {entry.tensors!r} is not a SHA-256")
        folder = cache() / "exported" / entry.tensors
        download([f"{address}/{TENSORS}"], entry.tensors, folder / TENSORS)
        weights = entry.backbone.get("weights")
        if isinstance(weights, dict) and weights.get("path") == BASE:
            download([f"{address}/{BASE}"], weights.get("sha256"), folder / BASE)
        with replacing(folder / ENTRY) as partial:
            shutil.copyfile(path, partial)
    return folder


def export(name: str, folder: Path, whole: bool = False) -> Exported:
    """Write a tuned backbone of the project as a folder.

    Args:
        name: <backbone>/<tuning>.
        folder: new or empty.
        whole: also write the tensors that were tuned, so that nothing else is needed.

    Raises:
        UserError: there is no such tuning, it was not trained yet or under other parameters, the folder is not empty,
            or its base tensors are a file of this machine and `whole` is not asked for.
    """
    values = params.load()
    plan = graph.Graph(values)
    backbone, _, tuning = name.partition("/")
    one_of("backbone", backbone, list(values.grid.backbones))
    one_of("tuning", tuning, list(values.grid.tunings))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists, and is no empty folder")
    job = plan.job("finetune", backbone, tuning)
    tuned = job.outputs["tensors"]
    record = provenance.expect(tuned, job.fingerprint)
    spec = values.backbones[backbone]
    if is_import_path(spec.family):
        raise UserError(
            f"backbones.{backbone}: {spec.family} is code of your own, which a folder of tensors cannot carry"
        )
    if isinstance(spec.weights, FileWeights) and not whole:
        raise UserError(
            f"backbones.{backbone}.weights: {spec.weights.path} is a file of this machine, which others do not have. "
            "Add --whole, to write its tensors too"
        )
    frozen = record["inputs"]["tensors"]
    with replacing(folder) as partial:
        partial.mkdir(parents=True)
        tensors, entry = read(tuned), spec.model_dump()
        save(partial / TENSORS, tensors, record)
        if whole:
            made = {"fingerprint": "", "origin": frozen.get("origin")}
            save(partial / BASE, read(job.inputs["tensors"]), made)
            entry["weights"] = {"kind": "file", "path": BASE, "sha256": sha256(partial / BASE)}
        digests = {"tensors": sha256(partial / TENSORS), "base": frozen["sha256"]}
        write_json(partial / ENTRY, {"format": FORMAT, "name": name, "backbone": entry, **digests})
        write_text(partial / CARD, "\n".join(_card(name, values, plan, record, len(tensors))) + "\n")
    return opened(folder)


def _card(name: str, values: Params, plan: graph.Graph, record: dict[str, Any], count: int) -> Iterator[str]:
    """The model card, line by line."""
    backbone, _, tuning = name.partition("/")
    spec, how, grid = values.backbones[backbone], values.tunings[tuning], values.grid
    licence = next((one.licence for one in PUBLISHED.values() if one.spec.weights == spec.weights), None)
    yield f"# {name}"
    yield ""
    yield f"Dense features for semantic correspondence: {spec.model}, tuned with semcorr {__version__}."
    yield ""
    yield "```python"
    yield "from semcorr import UnifiedBackbone, match_images"
    yield ""
    yield 'backbone = UnifiedBackbone.from_checkpoint("FOLDER")'
    yield 'match_images("cat.jpg", "tiger.png", [(120, 80)], backbone="FOLDER")'
    yield "```"
    yield ""
    yield f"- Base: {record['inputs']['tensors'].get('origin', 'unknown')}."
    yield f"- Licence of the base: {licence or 'not known to semcorr; see where it comes from'}."
    trained = f"{count} tensors of the last {how.blocks} blocks{' and a head' if how.head else ''}"
    yield f"- Trained: {trained}; loss {how.loss.name}, epoch {record['epoch']} of {how.epochs}."
    yield f"- Data: {grid.train}; chosen on {grid.validate_}."
    views = ", ".join(spec.views)
    yield f"- Images: {spec.image_size} pixels along the longer side. Layer {spec.layer}, views {views}."
    yield f"- Fingerprint: {record['fingerprint']}."
    yield ""
    yield "Every setting of the training:"
    yield ""
    data, held = values.datasets[grid.train or ""], values.hold_outs
    entries = {
        "tuning": how.model_dump(by_alias=True),
        "train": data.model_dump(exclude={"sources"}),
        "hold_outs": None if held is None else held.model_dump(),
    }
    yield "```json"
    yield json.dumps(entries, indent=2)
    yield "```"
    rows = list(_rows(backbone, tuning, values, plan))
    if rows:
        yield ""
        yield "## Results"
        yield ""
        yield (
            "PCK per keypoint in percent, with 95 % intervals from a bootstrap over pairs. Aspect ratio kept, "
            "distance <= threshold * reference, as in semcorr's docs/evaluating.md."
        )
        yield ""
        thresholds = [f"PCK@{value:.2f}" for value in values.evaluate.thresholds]
        yield f"| data | weights | rule | reference | {' | '.join(thresholds)} |"
        yield f"|---|---|---|---|{'---:|' * len(thresholds)}"
        yield from rows


def _rows(backbone: str, tuning: str, values: Params, plan: graph.Graph) -> Iterator[str]:
    """A row for each current result of the tuning and of the network before it."""
    for cell in plan.cells["evaluate"]:
        job = plan.job("evaluate", *cell)
        if job.cell["backbone"] != backbone or job.cell["weights"] not in ("frozen", tuning):
            continue
        path = job.outputs["cell"]
        if not path.exists():
            continue
        try:
            provenance.expect(path, job.fingerprint)
            found = provenance.read_result(path)
        except UserError:  # made under other parameters
            continue
        numbers = [
            f"{100 * one['mean']:.1f} ({100 * one['ci95'][0]:.1f} to {100 * one['ci95'][1]:.1f})"
            for one in found["overall_keypoint"].values()
        ]
        names = job.cell["dataset"], job.cell["weights"], job.cell["rule"], found["protocol"]["reference"]
        yield f"| {' | '.join([*names, *numbers])} |"
