"""Semantic correspondence with visual foundation models.

Importing this package does nothing and loads nothing heavy: PyTorch is imported when one of the classes below is first
asked for, and by the modules that compute with it.
"""

import importlib

__version__ = "0.1.0"

_PLACES = {  # public name -> the module of semcorr.api that has it
    "AP10KDataset": "datasets",
    "CorrespondenceMatcher": "matcher",
    "PFPascalDataset": "datasets",
    "PFWillowDataset": "datasets",
    "SPairDataset": "datasets",
    "UnifiedBackbone": "backbone",
    "UnifiedEvaluator": "evaluator",
    "collate": "datasets",
    "compute_pck": "evaluator",
    "match_images": "images",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> object:
    """The public classes and functions, from the modules of `semcorr.api` (PEP 562)."""
    if name in _PLACES:
        return getattr(importlib.import_module(f"semcorr.api.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
