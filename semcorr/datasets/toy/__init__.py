"""Toy benchmarks drawn from a seed: articulated objects with exact keypoints, masks, boxes and difficulty codes."""

from semcorr.datasets.toy.benchmarks import MIN_COMMON, WILLOW, write_pfwillow, write_spair
from semcorr.datasets.toy.objects import CATEGORIES
from semcorr.datasets.toy.scene import SIZES, render

__all__ = ["CATEGORIES", "MIN_COMMON", "SIZES", "WILLOW", "render", "write_pfwillow", "write_spair"]
