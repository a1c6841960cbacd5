"""The command `cgrpo`. Bad input ends in one line and exit code 2."""

from __future__ import annotations

from customized_grpo.cli.app import app

# isort: off
from customized_grpo.cli import (
    training,
    data,
    evaluation,
    rewards,
    sharing,
    planning,
)  # the order of the commands in --help
# isort: on

__all__ = ["app", "data", "evaluation", "main", "planning", "rewards", "sharing", "training"]


def main() -> None:
    """Run the `cgrpo` command."""
    app()
