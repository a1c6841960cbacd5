"""docs/metrics.md explains all that a run logs, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from running import metrics_of, run_training

from customized_grpo.config import Config, MethodConfig, RewardConfig

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_every_logged_number_is_explained(make_config: Callable[..., Config], tmp_path: Path) -> None:
    guard = RewardConfig(kind="copy-paste", role="guard", name="pasted", limit=99.0)
    run_training(make_config(iterations=1, kl_weight=0.1, rewards=[*make_config().rewards, guard]), tmp_path)
    (record,) = metrics_of(tmp_path)
    balanced = MethodConfig(objective="awm", weighting="constrained", keep={"prompt": 0.0, "identity": 0.0})
    run_training(make_config(iterations=1, shared_noise=False, updates=1, method=balanced), tmp_path / "forward")
    record |= metrics_of(tmp_path / "forward")[0]
    named = {re.sub(r"^reward/.+/mean$", "reward/NAME/mean", key) for key in record}
    logged = {re.sub("identity|prompt", "ROLE", key) for key in named}
    rows = re.findall(r"^\| (`.+?`) \|", PAGE, re.MULTILINE)
    explained = {name for row in rows for name in re.findall("`(.+?)`", row)} - {"evaluation/NAME/mean"}
    assert {name for name in explained if not name.startswith("seconds/")} == logged
