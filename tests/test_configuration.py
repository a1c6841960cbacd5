"""Configuration: defaults, merging, overrides, exact round trips, one line for each mistake.

`bad_inputs/bad_settings.py` tries many more mistakes, through the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from customized_grpo.config import Config, ConfigError, DataConfig, EvaluationConfig
from customized_grpo.config.loading import load_config, save_config

DEFAULT = Config()


def load(folder: Path, text: str, *overrides: str) -> Config:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def lines(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return [line.removeprefix(f"{folder}/") for line in str(caught.value).split("\n")]


def test_nothing_given_is_the_defaults(tmp_path: Path) -> None:
    for text in ("", "# only a comment\n", "train:\n  # nothing\n", "\ufeffseed: 0\r\n", "{}"):
        assert load(tmp_path, text) == DEFAULT


def test_a_file_overrides_the_defaults_and_set_overrides_the_file(tmp_path: Path) -> None:
    rewards = "rewards:\n- {kind: dino, role: identity}\n- {kind: clip, role: prompt}\n"
    text = f"seed: 3\nevaluation:\n  data:\n    seed: 9\n{rewards}"
    config = load(tmp_path, text, "rewards.1.weight=2", "seed=4", "train.learning_rate=1e-5", "policy.lora.rank=8")
    assert (config.seed, config.train.learning_rate) == (4, 1e-5)
    assert config.evaluation.data == DEFAULT.evaluation.data.model_copy(update={"seed": 9})
    assert [reward.weight for reward in config.rewards] == [1.0, 2.0]
    assert config.policy.lora is not None and config.policy.lora.rank == 8


def test_of_several_files_the_later_wins_and_is_named(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("train: {iterations: 7, batch_size: 3}\npolicy: {reference_sizes: [[16, 16], [24, 24]]}\n")
    second.write_text("train: {batch_size: 5}\npolicy: {reference_sizes: [[32, 32]]}\n")
    config = load_config([first, second], ["train.updates=9"])
    assert (config.train.iterations, config.train.batch_size, config.train.updates) == (7, 5, 9)
    assert config.policy.reference_sizes == [(32, 32)]
    second.write_text("train: {batch_size: 0}\n")
    with pytest.raises(ConfigError, match=r"second\.yaml:1: train\.batch_size"):
        load_config([first, second])


def test_overrides_of_every_kind() -> None:
    config = load_config(
        None,
        [
            "rewards.0.weight=2",
            "policy.lora=null",
            "policy.lora.rank=4",
            "policy.reference_sizes.0=[32, 48]",
            "policy.revision='12'",
            "method.std_floor.prompt=0.5",
            "method.std_floor={identity: 0.25}",
            "rewards.0.options.layers={a: [1, 2]}",
            "train={betas: [0.5, 0.75], iterations: 7}",
            "data.root=some/folder",
            "data.path=a=b.jsonl",
        ],
    )
    assert config.rewards[0].weight == 2
    assert config.policy.lora is not None and config.policy.lora.rank == 4
    assert config.policy.reference_sizes == [(32, 48)]
    assert config.policy.revision == "12"
    assert config.method.std_floor == {"identity": 0.25}
    assert config.rewards[0].options == {"layers": {"a": [1, 2]}}
    assert config.train == load_config().train.model_copy(update={"betas": (0.5, 0.75), "iterations": 7})
    assert (config.data.root, config.data.path) == (Path("some/folder"), "a=b.jsonl")
    assert load_config(None, ["policy.lora=null"]).policy.lora is None


def test_every_mistake_of_a_file_is_one_line_with_its_line_number(tmp_path: Path) -> None:
    text = "seed: -1\ntrain:\n  updates: many\n  lerning_rate: 1\nmethods: {}\nrewards:\n- kind: dino\n  role: style\n"
    assert lines(tmp_path, text) == [
        "run.yaml:1: seed: input should be greater than or equal to 0; given -1",
        "run.yaml:8: rewards.0.role: input should be 'identity', 'prompt' or 'guard'; given 'style'",
        "run.yaml:3: train.updates: input should be a valid integer; given 'many'",
        "run.yaml:4: train.lerning_rate: unknown key; did you mean train.learning_rate?",
        "run.yaml:5: methods: unknown key; did you mean method?",
    ]


def test_the_environment_is_not_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    assert load(tmp_path, "data:\n  path: $SECRET/${SECRET}\n").data.path == "$SECRET/${SECRET}"


def test_settings_that_contradict_each_other_are_reported_at_their_lines(tmp_path: Path) -> None:
    guard = "{kind: copy-paste, role: guard, name: copies}"
    rewards = f"rewards:\n- {{kind: dino, role: identity}}\n- {{kind: clip, role: prompt}}\n- {guard}\n"
    assert lines(tmp_path, rewards) == [
        "run.yaml:4: rewards.2: is a guard without a limit; set the limit above which images are removed, or move it "
        "to evaluation.monitors"
    ]
    assert load(tmp_path, rewards.replace("copies}", "copies, limit: 80}")).rewards[2].limit == 80
    with_limit = rewards.replace("role: prompt", "role: prompt, limit: 3").replace(f"- {guard}\n", "")
    assert lines(tmp_path, with_limit) == ["run.yaml:3: rewards.1.limit: is only for role guard; remove it"]
    monitors = "evaluation:\n  monitors:\n  - {kind: copy-paste, role: guard, limit: 80}\n"
    assert lines(tmp_path, monitors) == [
        "run.yaml:3: evaluation.monitors.0.limit: has no effect, because monitors are only logged; remove it, or move "
        "the guard to rewards"
    ]
    assert load(tmp_path, monitors.replace(", limit: 80", "")).evaluation.monitors[0].role == "guard"


TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["1e-4", "1e5", "null", "yes", "~", "1:30", "2024-01-01", "=", "<<", "0x1f", ".nan", "- a", "a: b",
                     "\x85", "a\u2028b", "\u2029", "two\nlines"]),
)  # fmt: skip
FINITE = st.floats(allow_nan=False, allow_infinity=False)
DECAY = st.floats(0, 1, exclude_max=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | FINITE | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(
    options=st.dictionaries(TEXTS, JSON, max_size=3),
    path=TEXTS,
    rate=st.floats(1e-300, 1e300),
    betas=st.tuples(DECAY, DECAY),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_saved_configurations_come_back_exactly(
    tmp_path: Path, options: dict[str, Any], path: str, rate: float, betas: tuple[float, float]
) -> None:
    values = DEFAULT.model_dump()
    values["rewards"][0]["options"] = options
    values["data"] |= {"path": path, "root": Path("a") / "b"}
    values["train"] |= {"learning_rate": rate, "betas": betas}
    values["policy"]["lora"] = None
    config = Config.model_validate(values)
    save_config(config, tmp_path / "new" / "run.yaml")
    again = load_config(tmp_path / "new" / "run.yaml")
    assert again == config
    assert again.model_dump_json() == config.model_dump_json()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.yaml"]


def test_evaluation_uses_the_training_data_unless_other_data_are_named(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("data: {path: pairs.jsonl, root: photos}\n", encoding="utf-8")
    for config in (load_config(mine), load_config(None, ["data.path=pairs.jsonl", "data.root=photos"])):
        held_out = config.evaluation.data
        assert (held_out.path, str(held_out.root), held_out.size) == ("pairs.jsonl", "photos", 96)
    named = load_config(mine, ["evaluation.data.path=others.jsonl"])
    assert (named.data.path, named.evaluation.data.path, named.evaluation.data.root) == (
        "pairs.jsonl", "others.jsonl", None,
    )  # fmt: skip
    assert (load_config().evaluation.data.path, Config().evaluation.data.path) == ("world", None)
    in_python = Config(data=DataConfig(path="mine.jsonl"), evaluation=EvaluationConfig(steps=2))
    assert in_python.evaluation.data.path == "mine.jsonl"
    assert load_config(None, ["data.path=world-recoloured"]).evaluation.data.split == "held-out"
