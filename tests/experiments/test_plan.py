"""A study's file and the runs it describes."""

from __future__ import annotations

from pathlib import Path

import pytest

from customized_grpo.config import Config
from experiments.study.plan import load_study, plan
from experiments.study.results import difference

STUDY = """
seeds: 2
ours: both
front: ["naive 1:1"]
set: {train.iterations: 7}
rows:
  both: {seeds: 3}
  "naive 1:1": {set: {method.shaping: none, method.weighting: static, method.prompt_weight: 0.25}}
"""


def test_every_first_seed_comes_before_any_second(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY, encoding="utf-8")
    runs = plan(load_study(tmp_path / "study.yaml"))
    assert [(run.row, run.seed) for run in runs] == [
        ("both", 0), ("naive 1:1", 0), ("both", 1), ("naive 1:1", 1), ("both", 2),
    ]  # fmt: skip
    assert all(run.config.train.iterations == 7 and run.config.seed == run.seed for run in runs)
    naive = runs[1].config.method
    assert (naive.shaping, naive.weighting, naive.prompt_weight, naive.identity_weight) == ("none", "static", 0.25, 0.5)
    assert runs[1].folder == "naive-1-to-1/seed-0"


@pytest.mark.parametrize("name", ["embedded", "trials", "tuned"])
def test_rows_of_a_shipped_study_differ_in_the_method_alone(name: str) -> None:
    runs = plan(load_study(Path(__file__).parents[2] / f"recipes/studies/{name}.yaml"))
    first = runs[0].config
    for config in (run.config for run in runs if run.seed == 0):
        assert config.model_copy(update={"method": first.method}) == first
        assert (config.evaluation.data.split == "train") == (name == "trials"), "held-out pairs are for the results"


def test_rows_of_an_objective_differ_in_the_method_and_its_scale_alone() -> None:
    runs = plan(load_study(Path(__file__).parents[2] / "recipes/studies/objectives.yaml"))
    firsts = {run.config.method.objective: run.config for run in reversed(runs) if run.seed == 0}
    assert set(firsts) == {"grpo", "awm", "nft"} and {run.seed for run in runs} == set(range(5))
    for run in runs:
        first, own = firsts[run.config.method.objective], {"method", "forward", "validation", "train", "seed"}
        assert all(getattr(run.config, key) == getattr(first, key) for key in Config.model_fields if key not in own)
        assert run.config.train == first.train.model_copy(update={"iterations": run.config.train.iterations})


def test_stored_settings_differ_in_changed_keys_and_not_in_new_defaults() -> None:
    config = Config()
    kept = config.model_dump(mode="json")
    assert difference(kept, config) is None
    del kept["rollout"]["shift"]  # a key that came later
    del kept["rewards"][0]["weight"]
    assert difference(kept, config) is None
    later = config.model_copy(update={"rollout": config.rollout.model_copy(update={"shift": 2.0})})
    assert difference(kept, later) == "rollout.shift"
    kept = config.model_dump(mode="json")
    kept["rewards"][1]["path"] = "elsewhere"
    assert difference(kept, config) == "rewards.1.path"
    kept = config.model_dump(mode="json")
    kept["train"]["gone"] = 1
    assert difference(kept, config) == "train.gone"
