"""Benchmarks that are run by hand from a clone."""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # before its first import, which prints advice
