"""Benchmarks: where their data comes from, how it is read, and the one table of formats."""
