"""PCK of predicted keypoints, and of a matcher over a dataset."""

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from semcorr import pck
from semcorr.api.matcher import CorrespondenceMatcher, numbers
from semcorr.errors import UserError, one_of
from semcorr.geometry import resize_points

THRESHOLDS = (0.05, 0.10, 0.15, 0.20)


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
        pred_kps: (N, 2), x y, in the same pixels as the sizes.
        gt_kps: the same.
        image_size: (H, W).
        bbox_size: (H, W); used instead of `image_size` if both are given.
        thresholds: fractions of the longer side; a distance equal to the limit is correct.
        reference: the length that a threshold multiplies, instead of a size.

    Returns:
        "PCK@0.10" -> which keypoints are correct (N,) bool, a tensor if `pred_kps` is one, and their fraction in
        [0, 1], NaN if N is 0.

    Raises:
        ValueError: neither a size nor a reference is given, or both; a size is not two positive numbers; a threshold is
            not positive; the points' shapes differ, or a point is not finite.
    """
    side = _side(image_size, bbox_size, reference)
    predicted, true = numbers(pred_kps), numbers(gt_kps)
    if predicted.shape != true.shape or predicted.ndim != 2 or predicted.shape[1] != 2:
        raise ValueError(f"pred_kps is {predicted.shape}, gt_kps {true.shape}, expected (N, 2) both")
    for name, points in (("pred_kps", predicted), ("gt_kps", true)):
        if not np.isfinite(points).all():
            raise ValueError(f"{name} holds NaN or infinite values; leave out missing keypoints")
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
            raise ValueError(f"{name} is {size}, expected two numbers (height, width); pass one length as reference=")
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{name} is {size}, whose height or width is not positive")
        sizes[name] = float(values.max())
    if (reference is not None) == bool(sizes):
        raise ValueError("give image_size or bbox_size, as (height, width), or reference, a length; not both")
    if reference is not None:
        if np.ndim(reference) or not 0 < float(reference) < math.inf:
            raise ValueError(f"reference is {reference}, expected a positive number")
        return float(reference)
    side = sizes.get("bbox_size") or sizes["image_size"]
    if side < 1 < sizes.get("image_size", 0):
        raise ValueError(f"bbox_size is {bbox_size}, less than a pixel; thresholds are given as thresholds=")
    return side


class UnifiedEvaluator:
    """PCK of a matcher over a dataset.

    Args:
        dataloader: of a dataset of semcorr, with `collate` or one item per batch.
        device: batches are moved to it; None leaves them where they are.
        thresholds: of PCK.
        reference: what a threshold multiplies: "bbox", "bbox_kp" (the larger range of the target's keypoints) or
            "image"; None uses the box if the benchmark has one, else the keypoints' range, as the presets do.
        bootstrap, seed: number of resamples and seed of the 95 % intervals.
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
            raise UserError(f"bootstrap: {bootstrap}; allowed: 1 or more samples")
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
            num_samples: number of pairs, from the start; None takes all.
            show_progress: show a bar on stderr.

        Returns:
            name, num_pairs, num_keypoints, inference_time_ms (per pair), reference; overall_keypoint, overall_image,
            overall_category: "PCK@0.10" -> mean, std, ci95; per_category_keypoint, per_category_image: category ->
            "PCK@0.10" -> mean, std; references: the overall averages under each reference known for all pairs.

        Raises:
            ValueError: there is no pair with a keypoint; the reference of a pair is unknown or zero; the matcher
                returns the wrong number of points, or points that are not finite.
        """
        total = len(getattr(self.dataloader, "dataset", ())) or None if num_samples is None else num_samples
        distances: list[np.ndarray] = []
        lengths, categories, seconds, ids = [], [], [], []
        with tqdm(total=total, unit="pair", desc=backbone_name, disable=not show_progress) as bar:
            for item in self._items():
                if num_samples is not None and len(distances) >= num_samples:
                    break
                valid = item["valid_mask"]
                if not valid.any():
                    continue
                start = time.perf_counter()
                matched = matcher.match(item["src_img"], item["tgt_img"], item["src_kps"][valid])
                seconds.append(time.perf_counter() - start)
                both, sizes = (matched, item["tgt_kps"][valid]), (tuple(item["tgt_size"]), tuple(item["tgt_orig_size"]))
                predicted, true = (resize_points(points.cpu().double().numpy(), *sizes) for points in both)
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
        """Iterate over the pairs of all batches, without padding."""
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
        counts = list(map(len, distances))
        known = [key for key in lengths[0] if all(length[key] for length in lengths)]
        headline = self.reference or ("bbox" if "bbox" in known else "bbox_kp")
        if headline not in known:
            first = next(pair_id for pair_id, length in zip(ids, lengths, strict=True) if not length[headline])
            advice = f"known for every pair: {', '.join(known)}"
            raise ValueError(f"reference {headline!r} is not known or zero for pair {first}; {advice}")
        pair = np.repeat(np.arange(len(counts)), counts)
        names, category = np.unique(categories, return_inverse=True)

        def correct(reference: str) -> np.ndarray:
            limits = np.repeat([length[reference] for length in lengths], counts)
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
            "per_category_keypoint": {str(key): self._means(hits[category[pair] == i]) for i, key in enumerate(names)},
            "per_category_image": {str(key): self._means(pairs[category == i]) for i, key in enumerate(names)},
            "references": {reference: overall(reference) for reference in known},
        }

    def _means(self, rows: np.ndarray) -> dict[str, dict[str, float]]:
        """The mean and standard deviation of each threshold's column."""
        return {
            pck.threshold_key(threshold): {"mean": float(column.mean()), "std": float(column.std())}
            for threshold, column in zip(self.thresholds, rows.T, strict=True)
        }
