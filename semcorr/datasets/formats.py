"""The one table of formats.

A format is a module with `find` (its root in a folder), `load` (one dataset of params.yaml as a Benchmark), `parts`
(all that the folder holds) and `verify` (what a single part cannot show).
"""

from types import ModuleType

from semcorr.datasets import ap10k, pfpascal, pfwillow, spair

# `format` in params.yaml -> the module that reads it.
FORMATS: dict[str, ModuleType] = {"spair": spair, "pfwillow": pfwillow, "pfpascal": pfpascal, "ap10k": ap10k}
