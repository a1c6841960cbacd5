"""Defaults are the paper's or the model's own; the embedded model is a recipe; every value tells where it is from."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
from commands import cgrpo

from customized_grpo.config import Config, ConfigError, DataConfig, LoraConfig, PolicyConfig, RolloutConfig
from customized_grpo.config.loading import (
    EMBEDDED_RECIPE,
    as_yaml,
    base_config,
    load_config,
    resolve_config,
    save_config,
)
from customized_grpo.config.presets import preset_of
from customized_grpo.data import DataError, open_dataset

ROOT = Path(__file__).parents[1]
KONTEXT = "black-forest-labs/FLUX.1-Kontext-dev"
EMPTY = Path(os.devnull)


def test_the_defaults_are_the_papers_on_kontext() -> None:
    config = Config()
    assert load_config(EMPTY) == load_config(None, [f"policy.path={KONTEXT}"]) == config
    policy, rollout, train, method = config.policy, config.rollout, config.train, config.method
    assert (policy.path, policy.dtype, policy.gradient_checkpointing) == (KONTEXT, "bfloat16", True)
    assert (rollout.sampler, rollout.eta, rollout.steps, rollout.group_size) == ("dance", 0.4, 25, 12)
    assert (train.learning_rate, train.updates, train.trained_fraction, train.ratio) == (2e-5, 3, 0.6, "plain")
    assert (method.shaping, method.gamma, method.weighting, config.evaluation.steps) == ("sars", 0.4, "tdw", 25)
    assert [reward.path for reward in config.rewards] == ["facebook/dinov2-base", "openai/clip-vit-large-patch14"]
    assert [monitor.kind for monitor in config.evaluation.monitors] == ["copy-paste"]


def test_the_embedded_model_is_trained_as_it_was_before_it_was_a_recipe() -> None:
    config = load_config()
    assert config == load_config(Path("embedded")) == load_config(EMBEDDED_RECIPE)
    assert config == load_config(ROOT / "recipes" / "embedded.yaml")
    policy, rollout, train = config.policy, config.rollout, config.train
    assert (policy.path, policy.dtype, policy.gradient_checkpointing) == ("embedded/pipeline", "float32", False)
    assert (policy.height, policy.width, policy.reference_sizes) == (64, 64, [(64, 64)])
    assert (policy.max_sequence_length, policy.guidance, policy.true_cfg, policy.lora) == (
        24, 2.5, 1.0, LoraConfig(rank=8),
    )  # fmt: skip
    assert rollout == RolloutConfig(sampler="flow", eta=1.0, steps=6, shift=3.0, pairs=4, batch_size=48)
    assert (train.iterations, train.updates, train.batch_size, train.trained_fraction) == (60, 2, 120, 1.0)
    assert (train.learning_rate, train.ratio, train.clip_range, train.weight_decay) == (1e-3, "guard", 1e-4, 1.1e-4)
    assert [reward.path for reward in config.rewards] == ["embedded/reward-identity", "embedded/reward-prompt"]
    assert config.evaluation.data == DataConfig(path="world", split="held-out", size=96, seed=1)
    assert (config.data.path, config.evaluation.steps, len(config.evaluation.monitors)) == ("world", 10, 3)


def test_the_embedded_recipe_is_not_laid_under_another_model(tmp_path: Path) -> None:
    assert resolve_config().embedded and not resolve_config(EMPTY).embedded
    assert load_config(None, ["policy.kind=uno"]) == Config(policy=PolicyConfig(kind="uno"))
    for override in ("policy.path=someone/model", "policy={kind: qwen-image-edit}", "policy.kind=mine.py:Policy"):
        found = resolve_config(None, [override])
        assert not found.embedded and found.config.policy.dtype == "bfloat16" and found.config.data.path is None
    assert load_config(None, ["policy.path=embedded/pipeline"]) == load_config()
    (tmp_path / "run.yaml").write_text("train: {iterations: 7}\n", encoding="utf-8")
    assert load_config(tmp_path / "run.yaml").policy.path == KONTEXT
    assert load_config([Path("embedded"), tmp_path / "run.yaml"]) == load_config(None, ["train.iterations=7"])
    assert base_config(load_config(None, ["train.iterations=7"]).policy) == load_config()


def test_a_model_brings_its_preset_along_in_python_as_in_a_file(tmp_path: Path) -> None:
    paths = {
        "flux-kontext": (KONTEXT, "/models/any"),
        "uno": ("black-forest-labs/FLUX.1-dev",),
        "flux2": ("black-forest-labs/FLUX.2-klein-4B", "black-forest-labs/FLUX.2-klein-base-9B", "/models/any"),
        "qwen-image-edit": ("Qwen/Qwen-Image-Edit-2511",),
        "mine.py:Policy": ("someone/model",),
    }
    for kind, path in ((kind, path) for kind, found in paths.items() for path in found):
        (tmp_path / "run.yaml").write_text(f"policy: {{kind: '{kind}', path: {path}}}\n", encoding="utf-8")
        config = load_config(tmp_path / "run.yaml")
        policy = PolicyConfig(kind=kind, path=path)
        assert config.policy == policy and config == Config(policy=policy) == load_config(None, [
            f"policy.path={path}", f"policy={{kind: '{kind}'}}",
        ])  # fmt: skip
        for key, value in preset_of(policy).values.items():
            part: object = config
            for name in key.split("."):
                part = getattr(part, name)
            assert part == value, (kind, key)
    assert preset_of(PolicyConfig(kind="flux2", path="FLUX.2-klein-base-9B")).model == "FLUX.2-klein-base"
    assert PolicyConfig(kind="flux2", path="x/klein", lora={"alpha": 3}).lora == LoraConfig(rank=128, alpha=3)  # type: ignore[arg-type]


def test_null_is_a_value_and_no_preset(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("policy: {kind: uno, lora: null}\nrollout: {shift: null}\n", encoding="utf-8")
    config = load_config(tmp_path / "run.yaml")
    assert config.policy.lora is None and config.rollout.shift is None
    assert (config.policy.height, load_config(None, ["policy.kind=uno"]).rollout.shift) == (512, 3.0)


@pytest.mark.parametrize(
    ("pipeline", "policy", "guidance"),
    [
        ("FluxKontextPipeline", PolicyConfig(path=KONTEXT), None),
        ("FluxPipeline", PolicyConfig(kind="uno"), "guidance"),
        ("Flux2KleinPipeline", PolicyConfig(kind="flux2", path="FLUX.2-klein-base-4B"), "true_cfg"),
        ("Flux2Pipeline", PolicyConfig(kind="flux2", path="FLUX.2-dev"), "guidance"),
        ("QwenImageEditPlusPipeline", PolicyConfig(kind="qwen-image-edit"), None),
    ],
)
def test_presets_are_what_the_pipelines_do_by_themselves(
    pipeline: str, policy: PolicyConfig, guidance: str | None
) -> None:
    """Except FLUX.1-Kontext-dev's guidance, where its model card differs from its pipeline."""
    usual = {k: one.default for k, one in inspect.signature(getattr(diffusers, pipeline).__call__).parameters.items()}
    assert policy.max_sequence_length == usual["max_sequence_length"]
    assert policy.true_cfg == usual.get("true_cfg_scale", policy.true_cfg)
    if guidance is not None:
        assert getattr(policy, guidance) == usual["guidance_scale"]


def test_every_value_tells_where_it_is_from(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "policy:\n  kind: flux2\n  path: x/FLUX.2-klein-4B\n  lora: {alpha: 4}\n"
        "rewards:\n- {kind: dino, role: identity}\n- {kind: clip, role: prompt}\ndata: {path: pairs.jsonl}\n",
        encoding="utf-8",
    )
    found = resolve_config(tmp_path / "run.yaml", ["rewards.1.weight=2", "policy.width=512"])
    origins, file = found.origins, tmp_path / "run.yaml"
    assert origins["policy.height"] == origins["policy.lora.rank"] == "preset of FLUX.2-klein"
    assert origins["policy.width"] == "--set policy.width=512"
    assert (origins["policy.kind"], origins["policy.lora.alpha"]) == (f"{file}:2", f"{file}:4")
    assert (origins["rewards.0.kind"], origins["rewards.0.device"]) == (f"{file}:6", "default")
    assert (origins["rewards.1.weight"], origins["train.updates"]) == ("--set rewards.1.weight=2", "default")
    assert origins["evaluation.data.path"] == "data.path"
    assert resolve_config().origins["rollout.sampler"].startswith("embedded:")
    shown = as_yaml(found.config, origins)
    assert "\n  height: 1024  # preset of FLUX.2-klein\n" in shown and "\n  steps: 4  # preset" in shown
    (tmp_path / "again.yaml").write_text(shown, encoding="utf-8")
    assert load_config(tmp_path / "again.yaml") == found.config


def test_a_saved_configuration_marks_the_values_of_the_preset(tmp_path: Path) -> None:
    config = load_config(None, [f"policy.path={KONTEXT}", "policy.height=512", f"data.path='{'a long name ' * 20}'"])
    save_config(config, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert "\n  height: 512\n  width: 1024  # preset of FLUX.1-Kontext-dev\n" in text
    assert "\n  reference_sizes: null  # preset of FLUX.1-Kontext-dev\n" in text and text.count("#") == 9
    assert load_config(tmp_path / "config.yaml") == config


def test_data_that_nobody_named_are_asked_for_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.path is not set; give --data pairs\.jsonl, a DreamBench folder, or"):
        open_dataset(Config().data)
    done = cgrpo("train", "--set", "policy.path=./nowhere", "--out", "run", folder=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "data.path is not set" in done.stderr
    assert done.stdout == "" and not (tmp_path / "run").exists()


def test_training_names_the_embedded_recipe_first(tmp_path: Path) -> None:
    done = cgrpo("train", "--set", "data.path=nowhere.jsonl", folder=tmp_path)
    assert done.returncode == 2 and done.stdout.startswith("recipe: embedded, ") and KONTEXT in done.stdout
    assert "nowhere.jsonl" in done.stderr


def test_a_configuration_takes_no_torch() -> None:
    code = "import sys, customized_grpo.config.loading as l; l.load_config(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_wrong_model_is_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["policy.kind=flux3"])
    assert str(caught.value).startswith("--set policy.kind=flux3: policy.kind: should be flux-kontext, uno")
    assert len(caught.value.problems) == 1
