"""The public Python API: the same readers, networks, matching and scoring as the stages, for programs and notebooks.

    from semcorr import CorrespondenceMatcher, PFWillowDataset, UnifiedBackbone, UnifiedEvaluator, collate

    dataset = PFWillowDataset("PF-dataset", long_side=518)
    matcher = CorrespondenceMatcher(UnifiedBackbone("dinov2"), use_soft_argmax=True)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, collate_fn=collate)
    print(UnifiedEvaluator(loader).evaluate(matcher, "dinov2")["overall_keypoint"]["PCK@0.10"])

Keypoints are (x, y) in pixels, (0, 0) the centre of the top-left pixel, of the image that they come with: the resized
one in a dataset's item, whatever image is given to `match`. A point of the original image is at
(p + 0.5) * scale - 0.5 in the resized one. Sizes are (height, width).
"""

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from PIL import Image as PillowImage
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from semcorr import params, pck, provenance, runtime
from semcorr.backbones import digest
from semcorr.backbones.base import IMAGENET_MEAN, IMAGENET_STD, resize, standardise
from semcorr.backbones.weights import get, overlay
from semcorr.datasets import ap10k, pfpascal, pfwillow, spair
from semcorr.datasets.base import Benchmark, Image, Pair
from semcorr.datasets.decode import AGAIN, decode
from semcorr.datasets.sources import root_of
from semcorr.errors import UserError, one_of
from semcorr.finite import rounded, unit
from semcorr.geometry import Grid, rescale, resized_size
from semcorr.matching import match_points
from semcorr.published import PUBLISHED, cache
from semcorr.readouts import readout

T = TypeVar("T")
THRESHOLDS = (0.05, 0.10, 0.15, 0.20)
RESAMPLING = {"bicubic": PillowImage.Resampling.BICUBIC, "bilinear": PillowImage.Resampling.BILINEAR}

# The base networks, by the words of the public API.
OFFICIAL: dict[str, dict[str, Any]] = {
    choice: {key: PUBLISHED[name].entry[key] for key in ("family", "model", "weights")}
    for choice, name in {"dinov2": "dinov2_b14", "dinov3": "dinov3_b16", "sam": "sam_b"}.items()
}


class PairDataset(Dataset):
    """Pairs of a benchmark as items, which are dicts.

        src_img, tgt_img                (3, H, W) float32, standardised unless `normalize=False`
        src_kps, tgt_kps                (N, 2) float32, pixels of these images
        valid_mask                      (N,) bool: annotated in both images
        category, pair_id               text
        src_id, tgt_id                  text, the images' names
        src_size, tgt_size              (2,) H, W of these images
        src_orig_size, tgt_orig_size    (2,) H, W of the files
        src_scale, tgt_scale            (2,) x, y: these images' size over the files'
        src_bbox, tgt_bbox              (4,) x0, y0, x1, y1 in pixels of the files, where the benchmark has boxes

    Args:
        root: the benchmark's folder, or one that holds it.
        long_side: pixels of the longer side; the aspect ratio is kept.
        normalize: standardise with ImageNet's mean and deviation, which DINOv2, DINOv3 and SAM share.
        resample: "bicubic", as the pipeline does for DINOv2 and DINOv3, or "bilinear", as it does for SAM.
    """

    def __init__(self, benchmark: Benchmark, long_side: int = 518, normalize: bool = True, resample: str = "bicubic"):
        if not isinstance(long_side, int) or long_side < 1:
            raise UserError(f"long_side: {long_side}; allowed: a whole number of pixels, 1 and more")
        self.folder = benchmark.root
        self.pairs: Sequence[Pair] = benchmark.pairs
        self._images = {image.id: image for image in benchmark.images}
        self.long_side, self.normalize = long_side, normalize
        self.resample = RESAMPLING[one_of("resample", resample, RESAMPLING)]

    def __len__(self) -> int:
        return len(self.pairs)

    def pair(self, index: int) -> Pair:
        """The annotation of an item, in pixels of the files."""
        return self.pairs[index]

    def image(self, image_id: str) -> Image:
        """What is known about one image."""
        return self._images[image_id]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        pair = self.pair(index)
        item: dict[str, Any] = {
            "category": pair.category,
            "pair_id": pair.id,
            "valid_mask": torch.ones(len(pair.keypoint_ids), dtype=torch.bool),
        }
        for side, name in (("src", "source"), ("tgt", "target")):
            image_id = getattr(pair, name)
            picture = decode(self.folder / self.image(image_id).file, upright=False, remedy=AGAIN)
            pixels = resize(picture, self.long_side, self.resample)
            old, new = (picture.height, picture.width), tuple(pixels.shape[1:])
            points = np.array(getattr(pair, f"{name}_keypoints"), float).reshape(-1, 2)
            item |= {
                f"{side}_img": standardise(pixels, IMAGENET_MEAN, IMAGENET_STD) if self.normalize else pixels,
                f"{side}_kps": torch.from_numpy(_rescale(points, old, new)).float(),
                f"{side}_id": image_id,
                f"{side}_size": torch.tensor(new),
                f"{side}_orig_size": torch.tensor(old),
                f"{side}_scale": torch.tensor([new[1] / old[1], new[0] / old[0]]),
            }
            bbox = getattr(pair, f"{name}_bbox")
            if bbox is not None:
                item[f"{side}_bbox"] = torch.tensor(bbox)
        self.further(pair, item)
        return item

    def further(self, pair: Pair, item: dict[str, Any]) -> None:
        """Add to an item what only some benchmarks say about a pair."""


class SPairDataset(PairDataset):
    """SPair-71k, or a folder in its format. See PairDataset for the items; besides, they have

        viewpoint_variation, scale_variation, truncation, occlusion, mirror     int, the benchmark's codes
        src_pose, tgt_pose, src_azimuth, tgt_azimuth                            where the folder has ImageAnnotation
        src_mask, tgt_mask      (H, W) uint8, resized to the nearest pixel, with `load_segmentation`

    An annotation is read when its item is asked for, so that opening the 53,340 training pairs takes no time.

    Args:
        root: the folder that holds Layout, PairAnnotation and JPEGImages, or one that holds that.
        split: "train" (or "trn"), "val" or "test".
        size: "large" (all pairs) or "small".
        load_segmentation: also load the masks.

    Raises:
        UserError: the folder is not in SPair-71k's format; asking for an item: one of its files is missing or damaged.
    """  # noqa: D415

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        size: str = "large",
        long_side: int = 518,
        normalize: bool = True,
        load_segmentation: bool = False,
        resample: str = "bicubic",
    ):
        self.split = one_of("split", {"train": "trn"}.get(split, split), spair.SPLITS)
        one_of("size", size, spair.LAYOUTS)
        self.root = root_of(_folder(root), "spair")
        self.lines = spair.read_layout(self.root, self.split, size)
        super().__init__(Benchmark(root=self.root / "JPEGImages", images=[], pairs=[]), long_side, normalize, resample)
        self.load_segmentation = load_segmentation
        self._sizes: dict[str, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self.lines)

    def pair(self, index: int) -> Pair:
        """See PairDataset."""
        return spair.read_pair(self.root, self.split, self.lines[index], self._sizes)

    def image(self, image_id: str) -> Image:
        """See PairDataset."""
        if image_id not in self._images:
            self._images[image_id] = spair.read_image(self.root, image_id, self._sizes[image_id])
        return self._images[image_id]

    def further(self, pair: Pair, item: dict[str, Any]) -> None:
        """See PairDataset."""
        for name in ("viewpoint_variation", "scale_variation", "truncation", "occlusion", "mirror"):
            item[name] = getattr(pair, name)
        for side, image in (("src", self.image(pair.source)), ("tgt", self.image(pair.target))):
            if image.azimuth is not None:
                item |= {f"{side}_pose": image.pose, f"{side}_azimuth": image.azimuth}
            if self.load_segmentation:
                mask = spair.read_mask(self.root, image.id, (image.height, image.width))
                small = mask.resize(item[f"{side}_size"].tolist()[::-1], PillowImage.Resampling.NEAREST)
                item[f"{side}_mask"] = torch.from_numpy(np.array(small, np.uint8))


class PFWillowDataset(PairDataset):
    """PF-WILLOW: all ordered pairs within a folder, ten keypoints each. See PairDataset for the items.

    Args:
        root: the folder that holds the sub-sets' folders, or one that holds that.
        pairs: the field's list of pairs, for its pairs in its order.

    Raises:
        UserError: a file is missing or damaged.
    """

    def __init__(
        self,
        root: str | Path,
        long_side: int = 518,
        normalize: bool = True,
        pairs: str | Path | None = None,
        resample: str = "bicubic",
    ):
        folder = root_of(_folder(root), "pfwillow")
        super().__init__(pfwillow.read(folder, pairs and Path(pairs)), long_side, normalize, resample)


class PFPascalDataset(PairDataset):
    """PF-PASCAL, with the field's lists of pairs. See PairDataset for the items.

    Raises:
        UserError: a file is missing or damaged.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "test",
        long_side: int = 518,
        normalize: bool = True,
        resample: str = "bicubic",
    ):
        split = one_of("split", {"train": "trn"}.get(split, split), pfpascal.LISTS)
        super().__init__(pfpascal.read(root_of(_folder(root), "pfpascal"), split), long_side, normalize, resample)


class AP10KDataset(PairDataset):
    """AP-10K's pairs: intra_species, cross_species or cross_family. See PairDataset for the items.

    Raises:
        UserError: a file is missing or damaged.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "test",
        subset: str = "intra_species",
        long_side: int = 518,
        normalize: bool = True,
        resample: str = "bicubic",
    ):
        split = one_of("split", {"train": "trn"}.get(split, split), ap10k.SPLITS)
        one_of("subset", subset, ap10k.SUFFIXES)
        super().__init__(ap10k.read(root_of(_folder(root), "ap10k"), split, subset), long_side, normalize, resample)


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of items of different sizes, for DataLoader(collate_fn=collate).

    Images, masks and keypoints are padded with zeros at the end to the batch's largest; `*_size` says how much of an
    image is image, and valid_mask is False on padded keypoints. Texts become lists, numbers (B,) tensors.
    """
    batch: dict[str, Any] = {}
    for key, first in items[0].items():
        values = [item[key] for item in items]
        if isinstance(first, Tensor):
            batch[key] = _stack(values)
        else:
            batch[key] = values if isinstance(first, str) else torch.tensor(values)
    return batch


def _stack(tensors: list[Tensor]) -> Tensor:
    """Tensors of one rank as one, each padded with zeros at the end of every axis."""
    shape = np.max([tensor.shape for tensor in tensors], axis=0).tolist()
    stacked = tensors[0].new_zeros([len(tensors), *shape])
    for place, tensor in zip(stacked, tensors, strict=True):
        place[tuple(map(slice, tensor.shape))] = tensor
    return stacked


class UnifiedBackbone(nn.Module):
    """A network with dense features.

    Args:
        backbone_choice: "dinov2" (ViT-B/14), "dinov3" (ViT-B/16) or "sam" (ViT-B); or a name that `semcorr backbones`
            lists, at its layer.
        finetune_choice: put the tuned tensors of `checkpoint_dir` (best.safetensors, as the stage finetune writes it)
            over the network's own. They are refused on other tensors than they were tuned from.
        checkpoint_dir: checkpoints/<backbone>/<tuning>.
        device: to compute on; None takes a GPU where there is one.
        weights: where the tensors come from: a file (.pth or .safetensors, official or timm's, or
            data/weights/<backbone>/frozen.safetensors), or a source as under `weights` in params.yaml; None takes the
            official ones, downloaded once.
        model: another published size, by timm's or segment-anything's name.
        layer: 0-based block whose output is the features, a list of them, or "neck" of SAM; None takes the last block.
        facet: "token", or "query", "key", "value" of the block's attention.
        norm: apply the final norm to them.
        compute: "float32", or "bfloat16", "float16" for mixed precision.
        precision: the features are rounded to it, as a feature store does.
        overrides: of the architecture, as in params.yaml.

    Raises:
        UserError: the tensors cannot be had or are not the network's; there is no such layer; the checkpoint is
            missing or was tuned from other tensors.
    """

    def __init__(
        self,
        backbone_choice: str = "dinov2",
        finetune_choice: bool = False,
        checkpoint_dir: str | Path | None = None,
        device: str | torch.device | None = None,
        *,
        weights: str | Path | dict[str, Any] | None = None,
        model: str | None = None,
        layer: int | list[int] | Literal["neck"] | None = None,
        facet: str = "token",
        norm: bool = False,
        compute: str = "float32",
        precision: str = "float16",
        overrides: dict[str, Any] | None = None,
    ):
        super().__init__()
        if backbone_choice not in OFFICIAL and backbone_choice not in PUBLISHED:
            known = ", ".join([*OFFICIAL, *PUBLISHED])
            raise UserError(f"UnifiedBackbone: no backbone {backbone_choice!r}; allowed: {known}")
        official = OFFICIAL.get(backbone_choice)
        if official is None:
            official = PUBLISHED[backbone_choice].entry
            layer = official["layer"] if layer is None else layer
        if model is not None and model != official["model"] and weights is None:
            raise UserError(f"UnifiedBackbone: weights: say where the tensors of {model} come from")
        self._setup(
            family=official["family"],
            model=model or official["model"],
            overrides=overrides or {},
            weights=_source(weights, official["weights"]),
            layer=layer,
            facet=facet,
            norm=norm,
            debias=None,
            compute=compute,
            precision=precision,
            device=device,
        )
        if finetune_choice:
            if checkpoint_dir is None:
                raise UserError(
                    "UnifiedBackbone: finetune_choice needs checkpoint_dir (checkpoints/<backbone>/<tuning>)"
                )
            self._adopt_tuned(Path(checkpoint_dir))

    @classmethod
    def from_params(
        cls,
        name: str,
        checkpoint_dir: str | Path | None = None,
        device: str | torch.device | None = None,
        path: str | Path = params.PARAMS_FILE,
    ) -> "UnifiedBackbone":
        """The network of an entry of `backbones` in params.yaml, with its tensors, layer, norm and precision."""
        known = params.load(Path(path)).backbones
        if name not in known:
            raise UserError(f"{path}: backbones: no {name!r}; allowed: {', '.join(known)}")
        spec = known[name]
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._setup(**{field: getattr(spec, field) for field in params.Backbone.model_fields}, device=device)
        if checkpoint_dir is not None:
            self._adopt_tuned(Path(checkpoint_dir))
        return self

    def _setup(self, *, layer: int | list[int] | str | None, device: str | torch.device | None, **entry: Any) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        # The last layer is known once the network is; the long side is the images' here.
        values = {"image_size": 518} | entry | {"layer": 0 if layer is None else layer}
        try:
            spec = params.Backbone.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"UnifiedBackbone: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        self.network, self.origin = get(spec, spec.weights, cache())
        if layer is None:
            spec = spec.model_copy(update={"layer": self.network.depth - 1})
        self.spec, self.precision = spec, getattr(torch, spec.precision)
        self.network.to(self.device)

    def _adopt_tuned(self, folder: Path) -> None:
        path = folder / "best.safetensors"
        if not path.exists():
            raise UserError(f"{path}: no such checkpoint. Make it with the stage finetune (dvc repro)")
        record = provenance.read(path)
        ours = {"layer": self.spec.layer, "facet": self.spec.facet, "norm": self.spec.norm}
        made = {name.rpartition(".")[2]: value for name, value in record.get("settings", {}).items()}
        overlay(self.network, path, digest(self.network.net.state_dict()))
        for key, value in ours.items():
            if made.get(key) != value:
                raise UserError(f"{path}: was tuned for {key} {made.get(key)}, this backbone has {value}")

    def grid(self, size: tuple[int, int]) -> Grid:
        """How the feature map lies on an image (H, W); one larger than SAM's canvas is shrunk to it."""
        side = getattr(self.network, "side", None)
        fits = side is None or max(size) <= side
        return Grid(
            image_size=size,
            resized_size=size if fits else resized_size(size, side),
            stride=self.network.stride,
        )

    @torch.inference_mode()
    def extract_features(self, image: Tensor) -> Tensor:
        """Dense features.

        Args:
            image: (B, 3, H, W), RGB standardised with ImageNet's mean and deviation, of any size; a network that was
                trained with others is given its own.

        Returns:
            (B, h, w, C) float32, the cells that the image covers.

        Raises:
            ValueError: the image has another shape, no pixels, or pixels that are no numbers.
            UserError: the features overflow `precision`.
        """
        if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
            raise ValueError(f"image is {tuple(image.shape)}, expected (B, 3, H, W)")
        if not image.is_floating_point():
            raise ValueError(f"image is {image.dtype}, expected standardised RGB in floats")
        grid = self.grid((image.shape[2], image.shape[3]))
        pixels = image.to(self.device, torch.float32)
        if grid.resized_size != grid.image_size:
            pixels = nn.functional.interpolate(pixels, grid.resized_size, mode="bilinear", antialias=True)
        if not torch.isfinite(pixels).all():
            raise ValueError("image holds NaN or infinite values")
        if (self.network.mean, self.network.std) != (IMAGENET_MEAN, IMAGENET_STD):
            theirs, ours = ((IMAGENET_MEAN, IMAGENET_STD), (self.network.mean, self.network.std))
            centre, scale, mean, std = (pixels.new_tensor(one)[:, None, None] for one in (*theirs, *ours))
            pixels = (pixels * scale + centre - mean) / std
        pixels = self.network.pad(pixels)
        with runtime.autocast(self.device, self.spec.compute):
            features = self.network.features(pixels, self.spec)
        height, width = grid.shape
        features = features.permute(0, 2, 3, 1)[:, :height, :width]
        stop, precision = self.network.stop(self.spec), self.spec.precision
        what = f"{self.network.name}: image of {image.shape[3]} x {image.shape[2]} pixels"
        why = partial(self.network.overflow_in, pixels[:1], stop, key="precision", precision=precision)
        return rounded(features, precision, what, why).float()

    forward = extract_features


class Recent(Generic[T]):
    """What was computed last, by key.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int):
        self._size, self._kept = size, OrderedDict[bytes, T]()

    def get(self, key: bytes, compute: Callable[[], T]) -> T:
        """What was computed for `key`, or is now."""
        if key not in self._kept:
            self._kept[key] = compute()
        self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return self._kept[key]


class CorrespondenceMatcher:
    """Finds source keypoints in a target image.

    Args:
        backbone: what makes the features.
        use_soft_argmax: window soft-argmax instead of argmax.
        window: its odd side length, in cells.
        temperature: divides the similarity in its softmax.
        sampling: of source descriptors, "bilinear" or "nearest".
        cache: how many images' features are kept, so that an image in many pairs is encoded once.
    """

    def __init__(
        self,
        backbone: UnifiedBackbone,
        use_soft_argmax: bool = False,
        *,
        window: int = 5,
        temperature: float = 0.04,
        sampling: str = "bilinear",
        cache: int = 64,
    ):
        self.backbone = backbone
        values: dict[str, Any] = {"readout": "argmax", "sampling": sampling}
        if use_soft_argmax:
            values = {"readout": "softargmax", "sampling": sampling, "window": window, "temperature": temperature}
        try:
            self.rule = TypeAdapter(params.Rule).validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"CorrespondenceMatcher: {first['loc'][-1]}: {first['msg']}") from None
        self._seen: Recent[Tensor] = Recent(max(2, cache))

    @torch.inference_mode()
    def match(self, src_img: Tensor | np.ndarray, tgt_img: Tensor | np.ndarray, src_kps: Tensor | np.ndarray) -> Tensor:
        """Predict the target keypoints.

        Args:
            src_img: (3, H, W) or (1, 3, H, W), standardised RGB, of any size and float type; a tensor or an array.
            tgt_img: the same.
            src_kps: (N, 2), x y in pixels of `src_img`.

        Returns:
            (N, 2) float32 on the CPU, x y in pixels of `tgt_img`.

        Raises:
            ValueError: a keypoint lies outside the source image, or an argument has another shape or type.
        """
        points = _numbers(src_kps)
        src_img, tgt_img = (_one_image(name, one) for name, one in (("src_img", src_img), ("tgt_img", tgt_img)))
        height, width = src_img.shape[-2:]
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"src_kps is {points.shape}, expected (N, 2)")
        slack = 1 + 0.01 * max(height, width)  # annotations count from 0 or from 1, before the image was resized
        if not ((points >= -slack) & (points <= (width + slack, height + slack))).all():
            raise ValueError(f"a keypoint lies outside the source image of {width} x {height} pixels")
        (source, source_grid), (target, target_grid) = self._features(src_img), self._features(tgt_img)
        maps = (unit(source, "src_img"), source_grid), (unit(target, "tgt_img"), target_grid)
        found, _ = match_points(points, *maps, self.rule.sampling, readout(self.rule))
        return torch.from_numpy(found).float()

    def _features(self, image: Tensor) -> tuple[Tensor, Grid]:
        """The feature map (h, w, C) of an image (1, 3, H, W), from the cache where these pixels were seen before."""
        key = hashlib.sha256(image.cpu().contiguous().numpy()).digest() + bytes(str(image.shape), "ascii")
        if isinstance(self.backbone, nn.Module):  # whether its tensors were changed since
            versions = sum(tensor._version for tensor in self.backbone.parameters() if not tensor.is_inference())
            key += f"{versions}".encode()
        # The backbone has rounded to this precision already, so nothing is lost.
        found = self._seen.get(key, lambda: self.backbone.extract_features(image)[0].to(self.backbone.precision))
        return found.float(), self.backbone.grid((image.shape[2], image.shape[3]))


def compute_pck(
    pred_kps: Tensor | np.ndarray,
    gt_kps: Tensor | np.ndarray,
    image_size: Sequence[float] | None = None,
    bbox_size: Sequence[float] | None = None,
    thresholds: Iterable[float] = THRESHOLDS,
    *,
    reference: float | None = None,
) -> dict[str, tuple[Any, float]]:
    """PCK of the keypoints of one image.

    Args:
        pred_kps: (N, 2), x y, in the pixels that the sizes are in.
        gt_kps: the same.
        image_size: (H, W).
        bbox_size: (H, W); it wins where both are given.
        thresholds: fractions of the longer side; a distance equal to the limit is correct.
        reference: the length itself that a threshold multiplies, in place of the sizes.

    Returns:
        "PCK@0.10" -> which keypoints are correct (N,) bool, a tensor where `pred_kps` is one, and their fraction in
        [0, 1], NaN where N is 0.

    Raises:
        ValueError: no size and no reference is given, or both; a size is not two positive numbers; a threshold is not
            positive; the points' shapes differ, or one of them is no number.
    """
    side = _side(image_size, bbox_size, reference)
    predicted, true = _numbers(pred_kps), _numbers(gt_kps)
    if predicted.shape != true.shape or predicted.ndim != 2 or predicted.shape[1] != 2:
        raise ValueError(f"pred_kps is {predicted.shape}, gt_kps {true.shape}, expected (N, 2) both")
    for name, points in (("pred_kps", predicted), ("gt_kps", true)):
        if not np.isfinite(points).all():
            raise ValueError(f"{name} holds NaN or infinite values; leave out keypoints that are not there")
    limits = _thresholds(thresholds)
    correct = pck.is_correct(pck.distances(predicted, true), np.full(len(true), side), limits)
    result = {}
    for column, threshold in zip(correct.T, limits, strict=True):
        mask = torch.from_numpy(column.copy()) if isinstance(pred_kps, Tensor) else column.copy()
        result[pck.threshold_key(threshold)] = (mask, float(column.mean()) if len(column) else float("nan"))
    return result


def _thresholds(values: Iterable[float]) -> list[float]:
    limits = [float(threshold) for threshold in np.ravel(list(values))]
    if not limits or not all(0 < limit < math.inf for limit in limits):
        raise ValueError(f"thresholds are {limits}, expected positive numbers")
    return limits


def _side(image_size: Any, bbox_size: Any, reference: float | None) -> float:
    """The length that thresholds multiply."""
    sizes = {}
    for name, size in (("image_size", image_size), ("bbox_size", bbox_size)):
        if size is None:
            continue
        values = np.asarray(size.cpu() if isinstance(size, Tensor) else size)
        if values.shape != (2,) or values.dtype.kind not in "iuf":
            raise ValueError(f"{name} is {size}, expected two numbers (height, width); one length goes to reference=")
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{name} is {size}, and a height or width is not positive")
        sizes[name] = float(values.max())
    if (reference is not None) == bool(sizes):
        raise ValueError("give image_size or bbox_size, as (height, width), or reference, a length; not both")
    if reference is not None:
        if np.ndim(reference) or not 0 < float(reference) < math.inf:
            raise ValueError(f"reference is {reference}, expected a positive number")
        return float(reference)
    side = sizes.get("bbox_size", sizes.get("image_size"))
    if side < 1 < sizes.get("image_size", 0):
        raise ValueError(f"bbox_size is {bbox_size}, less than a pixel; thresholds are given as thresholds=")
    return side


class UnifiedEvaluator:
    """PCK of a matcher over a dataset.

    Args:
        dataloader: of one of the datasets above, with `collate` or one item a batch.
        device: batches are moved to it; None leaves them where they are.
        thresholds: of PCK.
        reference: what a threshold multiplies: "bbox", "bbox_kp" (the larger range of the target's keypoints) or
            "image"; None takes the box where the benchmark has one, else the keypoints' range, as the presets do.
        bootstrap, seed: samples and seed of the 95 % intervals.
    """

    def __init__(
        self,
        dataloader: Iterable[dict[str, Any]],
        device: str | torch.device | None = None,
        thresholds: Sequence[float] = THRESHOLDS,
        *,
        reference: Literal["bbox", "bbox_kp", "image"] | None = None,
        bootstrap: int = 1000,
        seed: int = 0,
    ):
        if reference is not None:
            one_of("reference", reference, ("bbox", "bbox_kp", "image"))
        if bootstrap < 1:
            raise UserError(f"bootstrap: {bootstrap}; allowed: 1 and more samples")
        self.dataloader, self.device, self.thresholds = dataloader, device, _thresholds(thresholds)
        self.reference, self.bootstrap, self.seed = reference, bootstrap, seed

    def evaluate(
        self,
        matcher: CorrespondenceMatcher,
        backbone_name: str,
        num_samples: int | None = None,
        show_progress: bool = True,
    ) -> dict[str, Any]:
        """Match every pair and score it, in pixels of the original images.

        Args:
            matcher: with a `match` method.
            backbone_name: the result's name.
            num_samples: pairs, from the start; None takes all.
            show_progress: a bar on stderr.

        Returns:
            name, num_pairs, num_keypoints, inference_time_ms (a pair), reference; overall_keypoint, overall_image,
            overall_category: "PCK@0.10" -> mean, std, ci95; per_category_keypoint, per_category_image: category ->
            "PCK@0.10" -> mean, std; references: the overall averages under each reference that is known.

        Raises:
            ValueError: there is no pair with a keypoint; the reference is not known for each, or zero; the matcher
                gives another number of points than it was asked for, or points that are not finite.
        """
        total = num_samples
        if total is None:
            total = len(getattr(self.dataloader, "dataset", ())) or None
        distances, lengths, categories, seconds, ids = [], [], [], [], []
        with tqdm(total=total, unit="pair", desc=backbone_name, disable=not show_progress) as bar:
            for item in self._items():
                if num_samples is not None and len(distances) >= num_samples:
                    break
                seen = item["valid_mask"]
                if not seen.any():
                    continue
                start = time.perf_counter()
                predicted = matcher.match(item["src_img"], item["tgt_img"], item["src_kps"][seen])
                seconds.append(time.perf_counter() - start)
                sizes = tuple(item["tgt_size"]), tuple(item["tgt_orig_size"])
                predicted, true = (
                    _rescale(p.cpu().double().numpy(), *sizes) for p in (predicted, item["tgt_kps"][seen])
                )
                if not (np.isfinite(predicted).all() and np.isfinite(true).all()):
                    raise ValueError(f"pair {item['pair_id']}: a predicted or true keypoint is not finite")
                distances.append(pck.distances(predicted, true))
                lengths.append(pck.references(true, bbox=item.get("tgt_bbox"), image_size=sizes[1]))
                categories.append(item["category"])
                ids.append(item["pair_id"])
                bar.update()
        if not distances:
            raise ValueError("there is no pair with a keypoint")
        return self._result(backbone_name, distances, lengths, categories, seconds, ids)

    def _items(self) -> Iterable[dict[str, Any]]:
        """Each pair of each batch, without padding."""
        for batch in self.dataloader:
            for index in range(len(batch["pair_id"])):
                item = {key: values[index] for key, values in batch.items()}
                for side in ("src", "tgt"):
                    height, width = item[f"{side}_size"] = item[f"{side}_size"].tolist()
                    item[f"{side}_orig_size"] = item[f"{side}_orig_size"].tolist()
                    image = item[f"{side}_img"][:, :height, :width]
                    item[f"{side}_img"] = image if self.device is None else image.to(self.device)
                if "tgt_bbox" in item:
                    item["tgt_bbox"] = item["tgt_bbox"].tolist()
                yield item

    def _result(
        self,
        name: str,
        distances: list[np.ndarray],
        lengths: list[dict[str, float | None]],
        categories: list[str],
        seconds: list[float],
        ids: list[str],
    ) -> dict[str, Any]:
        counts = [len(one) for one in distances]
        known = [key for key in lengths[0] if all(one[key] for one in lengths)]
        headline = self.reference or ("bbox" if "bbox" in known else "bbox_kp")
        if headline not in known:
            first = next(pair_id for pair_id, one in zip(ids, lengths, strict=True) if not one[headline])
            others = f"; known for every pair: {', '.join(known)}"
            raise ValueError(f"reference {headline!r} is not known for every pair, or zero: not for {first}{others}")
        pair = np.repeat(np.arange(len(counts)), counts)
        names, category = np.unique(categories, return_inverse=True)

        def correct(reference: str) -> np.ndarray:
            limits = np.repeat([one[reference] for one in lengths], counts)
            return pck.is_correct(np.concatenate(distances), limits, self.thresholds)

        def overall(reference: str) -> dict[str, Any]:
            scores = pck.scores(correct(reference), pair, category, samples=self.bootstrap, seed=self.seed)
            return {f"overall_{average}": score.to_dict(self.thresholds) for average, score in scores.items()}

        hits = correct(headline)
        pairs = np.stack([hits[pair == index].mean(axis=0) for index in range(len(counts))])
        return {
            "name": name,
            "num_pairs": len(counts),
            "num_keypoints": len(hits),
            "inference_time_ms": 1000 * float(np.mean(seconds)),
            "reference": headline,
            **overall(headline),
            "per_category_keypoint": {
                str(one): self._means(hits[category[pair] == index]) for index, one in enumerate(names)
            },
            "per_category_image": {str(one): self._means(pairs[category == index]) for index, one in enumerate(names)},
            "references": {reference: overall(reference) for reference in known},
        }

    def _means(self, rows: np.ndarray) -> dict[str, dict[str, float]]:
        """Mean and deviation of each threshold's column."""
        return {
            pck.threshold_key(threshold): {"mean": float(column.mean()), "std": float(column.std())}
            for threshold, column in zip(self.thresholds, rows.T, strict=True)
        }


def _numbers(points: Tensor | np.ndarray) -> np.ndarray:
    """Points of any type, as floats."""
    if isinstance(points, Tensor):
        return points.detach().cpu().double().numpy()
    if isinstance(points, np.ma.MaskedArray) or np.iscomplexobj(points):
        raise ValueError("points are masked or complex; leave out those that are not there")
    return np.asarray(points, float)


def _one_image(name: str, image: Tensor | np.ndarray) -> Tensor:
    """One image (1, 3, H, W) in float32."""
    image = torch.as_tensor(image).detach()
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or image.shape[:2] != (1, 3):
        raise ValueError(f"{name} is {tuple(image.shape)}, expected (3, H, W) or (1, 3, H, W)")
    if not image.is_floating_point():
        raise ValueError(f"{name} is {image.dtype}, expected standardised RGB in floats")
    return image.float()


def _rescale(points: np.ndarray, old: tuple[float, ...], new: tuple[float, ...]) -> np.ndarray:
    """Points (N, 2) from an image of size (H, W) to its resized copy."""
    return rescale(points, np.array(old[::-1], float), np.array(new[::-1], float))


def _folder(root: str | Path) -> Path:
    path = Path(root).expanduser()
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    return path


def _source(weights: str | Path | dict[str, Any] | None, official: dict[str, Any]) -> dict[str, Any]:
    """A source as params.yaml has it."""
    if weights is None:
        return official
    if isinstance(weights, dict):
        return weights
    return {"kind": "file", "path": str(weights), "sha256": None}
