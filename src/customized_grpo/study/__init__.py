"""Methods compared over seeds: what to run, running it, and what came of it."""

from customized_grpo.study.study import run_study

__all__ = ["run_study"]
