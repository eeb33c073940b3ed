"""What pyproject.toml cannot say: a wheel also holds the project's own files; the repository has their one copy."""

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithProject(build_py):
    """Copies the project's files into the package that is built; an editable one finds them where they are."""

    def run(self) -> None:
        """See build_py."""
        super().run()
        if not self.editable_mode:
            copy = runpy.run_path("semcorr/engine/shipped.py")["copy"]
            copy(Path(), Path(self.build_lib, "semcorr/project"))


setup(cmdclass={"build_py": BuildWithProject})
