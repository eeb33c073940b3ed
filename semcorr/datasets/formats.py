"""The formats of datasets. A format is a module of its name here.

It has

    find        its root in a folder
    load        one dataset of params.yaml as a Benchmark
    verify      what a single part cannot show
    parts       all parts that the folder holds, each as a dataset of params.yaml
    rest        every image file; annotations that no part reads are read on the way
    absent      what the benchmark has and the folder has not
    WHOLE       what the dataset's entry says when all of a folder is meant

Modules are imported by name, so that one more of them re-runs nothing that does not use it.
"""

import importlib
from types import ModuleType


def reader(format_: str) -> ModuleType:
    """The module of a format."""
    return importlib.import_module(f"semcorr.datasets.{format_}")
