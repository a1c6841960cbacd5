"""Configurations of the embedded model, whose recipe gives what a test does not name, and runs with a random LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from customized_grpo.config import Config
from customized_grpo.config.loading import load_config, save_config
from customized_grpo.config.section import Section

S = TypeVar("S", bound=Section)
_RECIPE = load_config()


def embedded(section: type[S], **changes: Any) -> S:
    """That section of the embedded recipe, or all of it for `Config`, with changes by key."""
    found = [part for part in (_RECIPE, *vars(_RECIPE).values()) if type(part) is section]
    return section(**{**vars(found[0]), **changes})


def save_random_run(run: Path, config: Config, scale: float) -> Path:
    """Write a finished run with that configuration, its LoRA moved by random numbers of that scale."""
    from proofs import tune

    from customized_grpo.policies import build_policy

    run.mkdir()
    save_config(config, run / "config.yaml")
    policy = build_policy(config.policy)
    tune(policy, scale)
    policy.save(run / "lora")
    return run
