"""The command `cgrpo`: parses and calls. Bad input ends in one line and exit code 2.

A file of commands for each subject; importing them adds them to the application, in the order of its help.
"""

from __future__ import annotations

from customized_grpo.cli.app import app

# isort: off
from customized_grpo.cli import training, evaluation, rewards, sharing, planning
# isort: on

__all__ = ["app", "evaluation", "main", "planning", "rewards", "sharing", "training"]


def main() -> None:
    app()
