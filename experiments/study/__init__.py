"""Methods compared over seeds: what to run, running it, and what came of it."""

from experiments.study.study import measure_gradients, run_study

__all__ = ["measure_gradients", "run_study"]
