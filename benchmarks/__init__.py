"""Benchmarks that are run by hand, from a clone."""
