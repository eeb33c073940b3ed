"""The project's own files, presets, rules and schemas: next to the code in a wheel, else in the repository.

setup.py runs this file by its path, where nothing but Python itself is installed.
"""

import shutil
from pathlib import Path

FILES = ["Snakefile", "dvc.yaml", "profiles", "workflow/presets", "workflow/rules", "workflow/schemas"]
FILES += ["workflow/references.yaml", ".dvc/config", ".dvc/.gitignore", ".dvc/plots", ".dvcignore", ".gitignore"]


def folder() -> Path:
    """The folder that holds them."""
    inside = Path(__file__).parents[1] / "project"
    return inside if inside.is_dir() else Path(__file__).parents[2]


def copy(source: Path, target: Path) -> None:
    """Copy them from one folder into another: into a wheel that is built, or into a new project."""
    for name in FILES:
        place = target / name
        if (source / name).is_dir():
            shutil.copytree(source / name, place, dirs_exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, place)
