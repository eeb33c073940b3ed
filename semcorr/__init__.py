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
]


def __getattr__(name: str) -> object:
    """The public classes and functions, from `semcorr.api` (PEP 562)."""
    if name in __all__:
        from semcorr import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
