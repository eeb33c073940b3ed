"""Benchmarks: where their data comes from, and how it is read. The table of formats is `formats.FORMATS`."""
