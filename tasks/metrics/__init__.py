"""Scorers of the benchmarks: pure functions on texts, one concept a file, with no knowledge of files or models."""
