"""The one table of formats.

A format is a module with

    find        its root in a folder
    load        one dataset of params.yaml as a Benchmark
    verify      what a single part cannot show
    parts       all parts that the folder holds, each as a dataset of params.yaml
    rest        every image file; annotations that no part reads are read on the way
    absent      what the benchmark has and the folder has not
"""

from types import ModuleType

from semcorr.datasets import ap10k, pfpascal, pfwillow, spair

# `format` in params.yaml -> the module that reads it.
FORMATS: dict[str, ModuleType] = {"spair": spair, "pfwillow": pfwillow, "pfpascal": pfpascal, "ap10k": ap10k}
