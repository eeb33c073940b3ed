"""Benchmarks as PyTorch datasets: pairs of images, resized, with their keypoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor
from torch.utils.data import Dataset

from semcorr.datasets import ap10k, coco, pfpascal, pfwillow, spair
from semcorr.datasets.base import Benchmark, Image, Pair
from semcorr.datasets.decode import AGAIN, decode
from semcorr.datasets.sources import root_of
from semcorr.errors import UserError, one_of
from semcorr.geometry import resize, resize_points
from semcorr.networks.backbones.base import IMAGENET_MEAN, IMAGENET_STD, pixels_of, standardise
from semcorr.params import validate_dataset

RESAMPLING = {"bicubic": PillowImage.Resampling.BICUBIC, "bilinear": PillowImage.Resampling.BILINEAR}


class PairDataset(Dataset):
    """Pairs of a benchmark. Each item is a dict:

        src_img, tgt_img                (3, H, W) float32, standardised unless `normalize=False`
        src_kps, tgt_kps                (N, 2) float32, pixels of these images
        valid_mask                      (N,) bool: annotated in both images
        category, pair_id               str
        src_id, tgt_id                  str, the images' names
        src_size, tgt_size              (2,) H, W of these images
        src_orig_size, tgt_orig_size    (2,) H, W of the files
        src_scale, tgt_scale            (2,) x, y: these images' size over the files'
        src_bbox, tgt_bbox              (4,) x0, y0, x1, y1 in pixels of the files, if the benchmark has boxes

    Args:
        benchmark: the pairs and images of a split, as a reader of semcorr.datasets returns them.
        long_side: pixels of the longer side; the aspect ratio is kept.
        normalize: standardise with ImageNet's mean and deviation, which DINOv2, DINOv3 and SAM share.
        resample: "bicubic", as the stages do for DINOv2 and DINOv3, or "bilinear", as they do for SAM.
    """  # noqa: D415

    def __init__(self, benchmark: Benchmark, long_side: int = 518, normalize: bool = True, resample: str = "bicubic"):
        if not isinstance(long_side, int) or long_side < 1:
            raise UserError(f"long_side: {long_side}; allowed: a whole number of pixels, at least 1")
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
        """The annotation of an image."""
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
            pixels = pixels_of(resize(picture, self.long_side, self.resample))
            old, new = (picture.height, picture.width), tuple(pixels.shape[1:])
            points = pair.points(name)
            item |= {
                f"{side}_img": standardise(pixels, IMAGENET_MEAN, IMAGENET_STD) if self.normalize else pixels,
                f"{side}_kps": torch.from_numpy(resize_points(points, old, new)).float(),
                f"{side}_id": image_id,
                f"{side}_size": torch.tensor(new),
                f"{side}_orig_size": torch.tensor(old),
                f"{side}_scale": torch.tensor([new[1] / old[1], new[0] / old[0]]),
            }
            if (bbox := getattr(pair, f"{name}_bbox")) is not None:
                item[f"{side}_bbox"] = torch.tensor(bbox)
        self.further(pair, item)
        return item

    def further(self, pair: Pair, item: dict[str, Any]) -> None:
        """Add to an item what only this benchmark provides."""


class SPairDataset(PairDataset):
    """SPair-71k, or a folder in its format. Items are as in PairDataset, with these keys in addition:

        viewpoint_variation, scale_variation, truncation, occlusion, mirror     int, the benchmark's codes
        src_pose, tgt_pose, src_azimuth, tgt_azimuth                            if the folder has ImageAnnotation
        src_mask, tgt_mask      (H, W) uint8, resized by nearest neighbour, with `load_segmentation`

    Annotations are read with their items, so that opening the 53,340 training pairs takes no time.

    Args:
        root: the folder with Layout, PairAnnotation and JPEGImages, or its parent.
        split: "train" (or "trn"), "val" or "test".
        size: "large" (all pairs) or "small".
        long_side, normalize, resample: see PairDataset.
        load_segmentation: also load the masks.

    Raises:
        UserError: the folder is not in SPair-71k's format; when an item is read: a file is missing or damaged.
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
        self.split = _split(split)
        self.root = _root(root, "spair")
        self.lines = spair.read_layout(self.root, self.split, one_of("size", size, spair.LAYOUTS))
        super().__init__(Benchmark(root=self.root / "JPEGImages", images=[], pairs=[]), long_side, normalize, resample)
        self.load_segmentation = load_segmentation
        self._sizes: dict[str, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self.lines)

    def pair(self, index: int) -> Pair:
        """The annotation of an item, read from its file."""
        return spair.read_pair(self.root, self.split, self.lines[index], self._sizes)

    def image(self, image_id: str) -> Image:
        """The annotation of an image; one of its pairs must have been read before."""
        if image_id not in self._images:
            self._images[image_id] = spair.read_image(self.root, image_id, self._sizes[image_id])
        return self._images[image_id]

    def further(self, pair: Pair, item: dict[str, Any]) -> None:
        """Add difficulty codes and, if the folder has them, poses and masks."""
        for name in ("viewpoint_variation", "scale_variation", "truncation", "occlusion", "mirror"):
            item[name] = getattr(pair, name)
        for side, image in (("src", self.image(pair.source)), ("tgt", self.image(pair.target))):
            if image.azimuth is not None:
                item |= {f"{side}_pose": image.pose, f"{side}_azimuth": image.azimuth}
            if self.load_segmentation:
                mask = spair.read_mask(self.root, image.id, (image.height, image.width))
                resized = resize(mask, self.long_side, PillowImage.Resampling.NEAREST)
                item[f"{side}_mask"] = torch.from_numpy(np.array(resized, np.uint8))


class PFWillowDataset(PairDataset):
    """PF-WILLOW: all ordered pairs within a folder, ten keypoints each.

    Args:
        root: the folder with the sub-sets' folders, or its parent.
        resized, named: long_side, normalize and resample, see PairDataset.
        pairs: the usual list of pairs, for its pairs in its order.

    Raises:
        UserError: a file is missing or damaged.
    """

    def __init__(self, root: str | Path, *resized: Any, pairs: str | Path | None = None, **named: Any):
        super().__init__(pfwillow.read(_root(root, "pfwillow"), Path(pairs) if pairs else None), *resized, **named)


class PFPascalDataset(PairDataset):
    """PF-PASCAL with the usual lists of pairs, of a `split` as in SPairDataset; other arguments as PFWillowDataset."""

    def __init__(self, root: str | Path, split: str = "test", *resized: Any, **named: Any):
        split = _split(split)
        super().__init__(pfpascal.read(_root(root, "pfpascal"), split), *resized, **named)


class AP10KDataset(PairDataset):
    """AP-10K's pairs of a `subset`: intra_species, cross_species or cross_family; otherwise as PFPascalDataset."""

    def __init__(
        self, root: str | Path, split: str = "test", subset: str = "intra_species", *resized: Any, **named: Any
    ):
        split, subset = _split(split), one_of("subset", subset, ap10k.SUFFIXES)
        super().__init__(ap10k.read(_root(root, "ap10k"), split, subset), *resized, **named)


class COCODataset(PairDataset):
    """The objects of a COCO keypoints file, paired; other arguments as PFWillowDataset.

    Args:
        root: the folder of the data.
        annotations: path of the JSON file in it.
        images: path of the folder of images in it.
        resized, named: long_side, normalize and resample, see PairDataset.
        pairs: "within" a category, or "across" two by the keypoint names that they share.
        sample: this many of all pairs, drawn with `seed`; None takes all.
        seed: of the sample.

    Raises:
        UserError: a file is missing or damaged, or contradicts another.
    """

    def __init__(
        self,
        root: str | Path,
        annotations: str = "keypoints.json",
        images: str = ".",
        *resized: Any,
        pairs: str = "within",
        sample: int | None = None,
        seed: int = 0,
        **named: Any,
    ):
        drawn = None if sample is None else {"seed": seed, "pairs": sample}
        entry = {"annotations": annotations, "images": images, "pairs": pairs, "sample": drawn, "limit": None}
        source = {"kind": "path", "path": str(root)}
        spec: Any = validate_dataset({"format": "coco", "sources": [source], "expect": "any", **entry})
        super().__init__(coco.load(_root(root, "coco"), spec), *resized, **named)


def _root(folder: str | Path, format_: str) -> Path:
    """Find the root of a benchmark in a folder."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    return root_of(path, format_)


def _split(name: str) -> str:
    """A split's name in the formats, which say "trn" for "train"."""
    return one_of("split", {"train": "trn"}.get(name, name), spair.SPLITS)


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Batch items of different sizes, for DataLoader(collate_fn=collate).

    Images, masks and keypoints are zero-padded at the end to the largest in the batch; `*_size` is the size without
    padding, and valid_mask is False on padded keypoints. Strings become lists, numbers (B,) tensors.
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
    """Stack tensors of one rank, each zero-padded at the end of every axis."""
    shape = np.max([tensor.shape for tensor in tensors], axis=0).tolist()
    stacked = tensors[0].new_zeros([len(tensors), *shape])
    for row, tensor in zip(stacked, tensors, strict=True):
        row[tuple(map(slice, tensor.shape))] = tensor
    return stacked
