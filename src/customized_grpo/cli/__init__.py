"""The command `cgrpo`. Bad input ends in one line and exit code 2."""

from __future__ import annotations

# isort: off - commands are listed in this order
from customized_grpo.cli import evaluation, planning, rewards, sharing, training
from customized_grpo.cli.app import app

# isort: on

__all__ = ["app", "evaluation", "main", "planning", "rewards", "sharing", "training"]


def main() -> None:
    """Run the `cgrpo` command."""
    app()
