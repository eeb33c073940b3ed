"""Semantic correspondence with visual foundation models.

Importing this package does nothing and loads nothing heavy: PyTorch is imported when one of the classes below is first
asked for, and by the modules that compute with it.
"""

__version__ = "0.1.0"

__all__ = [
    "AP10KDataset",
    "CorrespondenceMatcher",
    "PFPascalDataset",
    "PFWillowDataset",
    "SPairDataset",
    "UnifiedBackbone",
    "UnifiedEvaluator",
    "collate",
    "compute_pck",
    "match_images",
]


def __getattr__(name: str) -> object:
    """The public classes and functions, from `semcorr.api` and `semcorr.images` (PEP 562)."""
    if name == "match_images":
        from semcorr.images import match_images

        return match_images
    if name in __all__:
        from semcorr import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
