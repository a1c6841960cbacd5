"""Configuration: defaults, merging, overrides, exact round trips, one line for each mistake."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from customized_grpo.config import Config, ConfigError, DataConfig, EvaluationConfig
from customized_grpo.config.loading import load_config, save_config

DEFAULT = Config.model_validate({})


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


def test_a_file_differs_from_the_defaults_and_overrides_from_the_file(tmp_path: Path) -> None:
    rewards = "rewards:\n- {kind: dino, role: identity}\n- {kind: clip, role: prompt}\n"
    text = "seed: 3\nevaluation:\n  data:\n    seed: 9\n" + rewards
    config = load(
        tmp_path,
        text,
        "rewards.1.weight=2",
        "seed=4",
        "train.learning_rate=1e-5",
        "policy.lora.rank=8",
    )
    assert (config.seed, config.train.learning_rate) == (4, 1e-5)
    assert config.evaluation.data.model_dump() == {
        **DEFAULT.evaluation.data.model_dump(),
        "seed": 9,
    }
    assert [reward.weight for reward in config.rewards] == [1.0, 2.0]
    assert config.policy.lora is not None
    assert config.policy.lora.rank == 8


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
    assert config.policy.lora is not None
    assert config.policy.lora.rank == 4
    assert config.policy.reference_sizes == [(32, 48)]
    assert config.policy.revision == "12"
    assert config.method.std_floor == {"identity": 0.25}
    assert config.rewards[0].options == {"layers": {"a": [1, 2]}}
    assert config.train == load_config().train.model_copy(update={"betas": (0.5, 0.75), "iterations": 7})
    assert config.data.root == Path("some/folder")
    assert config.data.path == "a=b.jsonl"
    assert load_config(None, ["policy.lora=null"]).policy.lora is None


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "train.lerning_rate=1",
            "train.lerning_rate: unknown key; did you mean train.learning_rate?",
        ),
        ("gamma=1", "gamma: unknown key; did you mean method.gamma?"),
        ("rewards.0.wait=1", "rewards.0.wait: unknown key; did you mean rewards.0.weight?"),
        ("policy.lora.rang=1", "policy.lora.rang: unknown key; did you mean policy.lora.rank?"),
        ("train.learning_rate=-1", "train.learning_rate: input should be greater than 0; given -1"),
        ("train.updates=true", "train.updates: input should be a valid integer; given True"),
        ("train.updates='3'", "train.updates: input should be a valid integer; given '3'"),
        ("train.updates=2.0", "train.updates: input should be a valid integer; given 2.0"),
        ("policy.height=65", "policy.height: input should be a multiple of 8; given 65"),
        (
            "policy.revision=12",
            "policy.revision: input should be a valid string, in quotes; given 12",
        ),
        (
            "rollout.sampler=ddim",
            "rollout.sampler: input should be 'dance', 'flow' or 'cps'; given 'ddim'",
        ),
        ("train.betas=[1]", "train.betas.1: field required"),
        ("rewards=[{role: prompt}]", "rewards.0.kind: field required"),
        ("rewards.7.weight=1", "rewards has entries 0 to 1, not '7'"),
        ("rewards.x.weight=1", "rewards has entries 0 to 1, not 'x'"),
        ("seed.a=1", "seed has no parts"),
        ("seed", "not an override"),
        ("=1", "not an override"),
        ("a..b=1", "not an override"),
        ("seed=[1,", "not valid YAML"),
        ("train.learning_rate=.nan", "train.learning_rate must be finite"),
        ("rewards.0.options.a=.inf", "rewards.0.options.a must be finite"),
        ("train=3", "train: input should be a mapping; given 3"),
        (
            "method.std_floor.style=1",
            "method.std_floor.style: input should be 'identity' or 'prompt'",
        ),
    ],
)
def test_a_wrong_override_is_one_line(override: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    first, *more = str(caught.value).split("\n")
    assert first.startswith(f"--set {override}: {text}")
    assert all(line.startswith(f"--set {override}: ") for line in more)


def test_a_wrong_file_is_told_of_by_line(tmp_path: Path) -> None:
    text = "seed: -1\ntrain:\n  updates: many\n  lerning_rate: 1\nmethods: {}\n"
    text += "rewards:\n- kind: dino\n  role: style\n"
    assert lines(tmp_path, text) == [
        "run.yaml:1: seed: input should be greater than or equal to 0; given -1",
        "run.yaml:8: rewards.0.role: input should be 'identity', 'prompt' or 'guard'; given 'style'",
        "run.yaml:3: train.updates: input should be a valid integer; given 'many'",
        "run.yaml:4: train.lerning_rate: unknown key; did you mean train.learning_rate?",
        "run.yaml:5: methods: unknown key; did you mean method?",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\ntrain: {}\nseed: 2\n", "run.yaml:3: seed is given twice; keep one"),
        (
            "train:\n  updates: 1\n  updates: 1\n",
            "run.yaml:3: train.updates is given twice; keep one",
        ),
        ("seed: 1\n\ttrain: 2\n", "run.yaml:2: not valid YAML"),
        ("seed: [1\n", "run.yaml:2: not valid YAML"),
        ("seed: 1\n---\nseed: 2\n", "run.yaml:2: not valid YAML"),
        ("seed: \x00\n", "run.yaml: not valid YAML"),
        ("- 1\n", "run.yaml: not a mapping"),
        ("seed: !!python/object/apply:os.getcwd []\n", "run.yaml:1: "),
        ("data:\n  path: !!python/name:os.getcwd x\n", "run.yaml:2: data.path has the tag"),
        (
            "data: &a {path: x}\nevaluation:\n  data: *a\n",
            "run.yaml:1: evaluation.data is an alias",
        ),
        ("rewards: &a [*a]\n", "run.yaml:1: rewards.0 is an alias"),
        ("? [a]\n: 1\n", "run.yaml:1: the file has a key that is no plain text"),
        ("[" * 1000, "run.yaml"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, expected: str) -> None:
    found = lines(tmp_path, text)
    assert found[0].startswith(expected)
    assert len(found) == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"seed: \xe9")
    for name, text in [
        ("none.yaml", "cannot be read"),
        (".", "cannot be read"),
        ("latin.yaml", "not UTF-8"),
    ]:
        with pytest.raises(ConfigError, match=text) as caught:
            load_config(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_the_environment_is_not_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    assert load(tmp_path, "data:\n  path: $SECRET/${SECRET}\n").data.path == "$SECRET/${SECRET}"


def test_what_contradicts_itself() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["rewards.0.weight=0"])
    assert str(caught.value) == "rewards: no reward of role identity with a weight above 0; add one"


def test_guards_watch_or_veto_and_teach_nothing(tmp_path: Path) -> None:
    assert [monitor.name for monitor in DEFAULT.evaluation.monitors if monitor.role == "guard"] == ["copy-paste"]
    guard = "{kind: copy-paste, role: guard, name: copies}"
    rewards = f"rewards:\n- {{kind: dino, role: identity}}\n- {{kind: clip, role: prompt}}\n- {guard}\n"
    assert lines(tmp_path, rewards) == [
        "rewards: 'copies' is a guard; give it a limit, above which it vetoes a picture, or put it under "
        "evaluation.monitors, where it only watches"
    ]
    assert load(tmp_path, rewards.replace("copies}", "copies, limit: 80}")).rewards[2].limit == 80
    assert lines(tmp_path, rewards.replace("role: prompt", "role: prompt, limit: 3").replace(f"- {guard}\n", "")) == [
        "rewards: 'clip' has a limit, which is a guard's alone; leave it out"
    ]
    watched = guard.replace("copies}", "copies, limit: 80}")
    assert lines(tmp_path, f"evaluation:\n  monitors:\n  - {watched}\n") == [
        "evaluation.monitors: 'copies' has a limit, and monitors only watch; "
        "leave it out, or put the guard under rewards"
    ]
    monitors = load(tmp_path, f"evaluation:\n  monitors:\n  - {guard}\n").evaluation.monitors
    assert [(monitor.kind, monitor.role) for monitor in monitors] == [("copy-paste", "guard")]


def test_a_plain_sum_is_asked_for_as_a_whole(tmp_path: Path) -> None:
    text = "method:\n  normalise: sum\n  shaping: none\n"
    assert lines(tmp_path, text) == [
        "run.yaml:2: method.normalise: sum needs method.shaping=none and method.weighting=static; "
        "set both, or leave it at roles; given 'sum'"
    ]
    assert load(tmp_path, text, "method.weighting=static").method.normalise == "sum"


TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(
        [
            "1e-4",
            "1e5",
            "null",
            "yes",
            "~",
            "1:30",
            "2024-01-01",
            "=",
            "<<",
            "0x1f",
            ".nan",
            "- a",
            "a: b",
        ]
    ),
)
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
    values["data"]["path"] = path
    values["data"]["root"] = Path("a") / "b"
    values["train"].update(learning_rate=rate, betas=betas)
    values["policy"]["lora"] = None
    config = Config.model_validate(values)
    save_config(config, tmp_path / "new" / "run.yaml")
    again = load_config(tmp_path / "new" / "run.yaml")
    assert again == config
    assert again.model_dump_json() == config.model_dump_json()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.yaml"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    save_config(DEFAULT, path)
    before = path.read_text()
    values = DEFAULT.model_dump()
    values["rewards"][0]["options"] = {"a": object()}
    with pytest.raises(Exception, match="serialize"):
        save_config(Config.model_validate(values), path)
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.yaml"]


def test_numbers_with_an_exponent_alone(tmp_path: Path) -> None:
    for text in ("1e-4", "1E-4", "1.e-4", "+1e-4", "0.0001"):
        rate = load(tmp_path, f"train: {{learning_rate: {text}}}").train.learning_rate
        assert math.isclose(rate, 1e-4, rel_tol=0)


@pytest.mark.parametrize("text", ["\x85", "a\u2028b", "\u2029", "naïve 猫", "two\nlines"])
def test_text_of_any_line_break_comes_back(tmp_path: Path, text: str) -> None:
    config = Config.model_validate({"data": {"path": text}})
    save_config(config, tmp_path / "run.yaml")
    assert load_config(tmp_path / "run.yaml").data.path == text


def test_what_is_evaluated_on_is_what_is_trained_on_until_somebody_names_it(tmp_path: Path) -> None:
    """In a file as by --set, with the folder that paths start from; the built-in world has other pairs for it."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("data: {path: pairs.jsonl, root: photos}\n", encoding="utf-8")
    for config in (load_config(mine), load_config(None, ["data.path=pairs.jsonl", "data.root=photos"])):
        assert (config.evaluation.data.path, str(config.evaluation.data.root)) == ("pairs.jsonl", "photos")
        assert config.evaluation.data.size == 96
    named = load_config(mine, ["evaluation.data.path=others.jsonl"])
    assert (named.data.path, named.evaluation.data.path, named.evaluation.data.root) == (
        "pairs.jsonl",
        "others.jsonl",
        None,
    )
    assert (load_config().evaluation.data.path, Config().evaluation.data.path) == ("world", None)
    assert Config(data=DataConfig(path="mine.jsonl"), evaluation=EvaluationConfig(steps=2)).evaluation.data.path == (
        "mine.jsonl"
    )
    assert load_config(None, ["data.path=world-recoloured"]).evaluation.data.split == "held-out"
