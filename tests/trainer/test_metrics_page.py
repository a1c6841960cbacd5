"""The page that explains a run's numbers names all that a run logs, and no other; and the thresholds of warnings."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from running import run_training

from customized_grpo.config import Config, RewardConfig
from customized_grpo.reporting import warnings
from customized_grpo.utils.records import read_records

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| (.+?) \| (.+) \|$", PAGE, re.MULTILINE))


def test_every_logged_number_is_explained(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(iterations=1, kl_weight=0.1)
    guard = RewardConfig(kind="copy-paste", role="guard", name="pasted", limit=99.0)
    run_training(config.model_copy(update={"rewards": [*config.rewards, guard]}), tmp_path)
    (record,) = read_records(tmp_path / "metrics.jsonl")
    named = {re.sub(r"^reward/.+/mean$", "reward/NAME/mean", key) for key in record}
    logged = {re.sub("identity|prompt", "ROLE", key) for key in named}
    explained = {name.strip("`") for name in ROWS if name.startswith("`")}
    assert explained - {"evaluation/NAME/mean"} == logged  # which the run adds, and tests/test_cli.py sees


def test_every_warning_is_explained_with_its_threshold() -> None:
    kinds = get_args(warnings.Kind)
    assert [name for name in ROWS if name in kinds] == sorted(kinds, key=list(ROWS).index)
    assert set(kinds) <= set(ROWS)
    for kind, thresholds in {
        "hacking": [f"{warnings.PARTED:g}%"],
        "competition": [f"{warnings.PARTED:g}%"],
        "copy-paste": [f"{warnings.PASTED:g} points"],
        "diversity": [f"{warnings.COLLAPSED:.0%}"],
        "dead groups": [f"{warnings.DEAD:.0%}"],
        "vetoes": [f"{warnings.VETOED:.0%}"],
        "KL": [f"{warnings.KL_LIMIT:g} nat", f"{warnings.EXPLODED:g} times"],
        "clipping": [f"{warnings.PINNED:.0%}"],
    }.items():
        for threshold in thresholds:
            assert threshold in ROWS[kind], kind
    assert f"before {warnings.LEAST} iterations" in PAGE
