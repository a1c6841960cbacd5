"""docs/metrics.md explains all that a run logs, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from running import metrics_of, run_training

from customized_grpo.config import Config, RewardConfig

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_every_logged_number_is_explained(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(iterations=1, kl_weight=0.1)
    guard = RewardConfig(kind="copy-paste", role="guard", name="pasted", limit=99.0)
    run_training(config.model_copy(update={"rewards": [*config.rewards, guard]}), tmp_path)
    (record,) = metrics_of(tmp_path)
    named = {re.sub(r"^reward/.+/mean$", "reward/NAME/mean", key) for key in record}
    logged = {re.sub("identity|prompt", "ROLE", key) for key in named}
    explained = set(re.findall(r"^\| `(.+?)` \|", PAGE, re.MULTILINE)) - {"evaluation/NAME/mean"}
    assert {name for name in explained if not name.startswith("seconds/")} == logged
