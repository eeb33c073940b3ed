"""What pyproject.toml cannot say: a wheel also holds the project's own files; the repository has their one copy."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# What an experiment needs beside the package; semcorr/shipped.py finds it, in a wheel or in the repository.
PROJECT = ["Snakefile", "dvc.yaml", "params.yaml", "workflow/presets", "workflow/rules", "workflow/schemas", "profiles"]
PROJECT += [".dvc/config", ".dvc/plots", ".dvcignore"]


class BuildWithProject(build_py):
    """Copies the project's files into the package that is built; an editable one finds them where they are."""

    def run(self) -> None:
        """See build_py."""
        super().run()
        if self.editable_mode:
            return
        for name in PROJECT:
            source, place = Path(name), Path(self.build_lib, "semcorr/project", name)
            if source.is_dir():
                shutil.copytree(source, place, dirs_exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, place)


setup(cmdclass={"build_py": BuildWithProject})
