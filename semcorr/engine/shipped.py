"""The project's own files, presets, rules and schemas: next to the code in a wheel, else in the repository."""

from pathlib import Path


def folder() -> Path:
    """The folder that holds them."""
    inside = Path(__file__).parents[1] / "project"
    return inside if inside.is_dir() else Path(__file__).parents[2]
