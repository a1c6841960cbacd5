"""A reward that is learnt while its independent judge falls is told of while it happens, and at the end."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from embedded import embedded
from rich.console import Console

from customized_grpo.cli.run import train_run
from customized_grpo.config import Config, EvaluationConfig, RewardConfig

JUDGES = '''
def redness(images, pairs):
    return 50 + 600 * (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def paleness(images, pairs):
    """Falls as the other rises, as the taste of people might."""
    return 100 - redness(images, pairs)
'''


@pytest.mark.parametrize("monitor", ["paleness", "redness"])
def test_a_reward_that_leaves_its_judge_behind_is_told_of(
    make_config: Callable[..., Config], tmp_path: Path, monitor: str
) -> None:
    judges = tmp_path / "judges.py"
    judges.write_text(JUDGES, encoding="utf-8")
    config = make_config(iterations=24, pairs=2, group_size=8, learning_rate=3e-3, updates=1, sample_every=6)
    rewards = [RewardConfig(kind=f"{judges}:redness", role="identity", name="red"), config.rewards[1]]
    watched = RewardConfig(kind=f"{judges}:{monitor}", role="identity", name="watched")
    evaluation = embedded(EvaluationConfig, data=config.evaluation.data, steps=3, monitors=[watched])
    text = io.StringIO()
    run = tmp_path / "run"
    train_run(
        config.model_copy(update={"rewards": rewards, "evaluation": evaluation}), run, Console(file=text, width=400)
    )
    warnings = [line for line in text.getvalue().splitlines() if "the identity reward has risen" in line]
    table = [line.split("│")[1:-1] for line in text.getvalue().splitlines() if line.startswith("│")]
    noted = {row[0].strip(): row[-1].strip() for row in table}
    if monitor == "redness":
        assert not warnings and "parted" not in text.getvalue()
        return
    assert noted == {"red": "parted at iteration 0", "light": "", "watched": "parted at iteration 0"}
    while_training, _ = warnings
    for line in warnings:
        assert line.startswith("warning: Since iteration 0 the identity reward has risen by")
        assert "independent identity monitors have fallen" in line
    assert text.getvalue().index(while_training) < text.getvalue().index("24/24")
    assert "Since iteration 0 the identity reward has risen" in (run / "report.html").read_text(encoding="utf-8")
