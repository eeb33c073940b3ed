"""Semantic correspondence with visual foundation models.

Importing this package loads nothing heavy: PyTorch is imported on first access to one of the names below, and by the
modules that compute with it.
"""

import importlib

__version__ = "0.1.0"

_PLACES = {  # public name -> its module in semcorr.api
    "AP10KDataset": "datasets",
    "COCODataset": "datasets",
    "CorrespondenceMatcher": "matcher",
    "PFPascalDataset": "datasets",
    "PFWillowDataset": "datasets",
    "SPairDataset": "datasets",
    "Support": "find",
    "UnifiedBackbone": "backbone",
    "UnifiedEvaluator": "evaluator",
    "collate": "datasets",
    "compute_pck": "evaluator",
    "match_images": "images",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> object:
    """Import a public class or function from `semcorr.api` on first access (PEP 562)."""
    if name in _PLACES:
        return getattr(importlib.import_module(f"semcorr.api.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
