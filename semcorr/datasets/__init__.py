"""Benchmarks: where their data comes from, and how it is read; see `formats`."""
