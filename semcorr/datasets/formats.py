"""Dataset formats. A format is a module here with its name.

It has

    find        finds its root in a folder
    load        loads one dataset of params.yaml as a Benchmark: its categories and its part, whatever its limit
    listed      the images of each of its pairs, from lists and names of files alone; see `listing`
    verify      checks what no single part can show
    parts       all parts that the folder holds, each as a dataset of params.yaml
    rest        every image file; also reads annotations that no part reads
    absent      what the benchmark has and the folder lacks
    WHOLE       the dataset's entry for all of a folder

Modules are imported by name, so that adding one re-runs nothing that does not use it.
"""

import importlib
from types import ModuleType
from typing import Protocol


class Files(Protocol):
    """Files below the root of a dataset, in a folder or an archive."""

    def names(self, pattern: str) -> list[str]:
        """Their paths that match, sorted; `*` stands for any part of a name."""

    def text(self, name: str) -> str:
        """The content of a list; nothing if there is no such file."""


def reader(format_: str) -> ModuleType:
    """The module of a format."""
    return importlib.import_module(f"semcorr.datasets.{format_}")
