"""Defaults are the paper's or the model's own; the embedded model is a recipe; every value has an origin."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import diffusers
import pytest
from commands import cgrpo

from customized_grpo.config import Config, ConfigError, LoraConfig, PolicyConfig
from customized_grpo.config.arguments import CustomizedGRPOConfig
from customized_grpo.config.loading import EMBEDDED_RECIPE, base_config, load_config, resolve_config
from customized_grpo.config.presets import preset_of
from customized_grpo.data import DataError, open_dataset

ROOT = Path(__file__).parents[1]
KONTEXT = "black-forest-labs/FLUX.1-Kontext-dev"
EMPTY = Path(os.devnull)


def test_without_a_file_the_embedded_recipe_is_used_unless_another_model_is_named(tmp_path: Path) -> None:
    recipe = load_config()
    assert recipe == load_config(Path("embedded")) == load_config(EMBEDDED_RECIPE)
    assert recipe == load_config(ROOT / "recipes" / "embedded.yaml")
    assert (recipe.policy.path, recipe.data.path) == ("embedded/pipeline", "world")
    assert resolve_config().embedded and not resolve_config(EMPTY).embedded
    assert load_config(EMPTY) == load_config(None, [f"policy.path={KONTEXT}"]) == Config()
    assert load_config(None, ["policy.kind=uno"]) == Config(policy=PolicyConfig(kind="uno"))
    for override in ("policy.path=someone/model", "policy={kind: qwen-image-edit}", "policy.kind=mine.py:Policy"):
        found = resolve_config(None, [override])
        assert not found.embedded and found.config.policy.dtype == "bfloat16" and found.config.data.path is None
    assert load_config(None, ["policy.path=embedded/pipeline"]) == recipe
    (tmp_path / "run.yaml").write_text("train: {iterations: 7}\n", encoding="utf-8")
    assert load_config(tmp_path / "run.yaml").policy.path == KONTEXT
    assert load_config([Path("embedded"), tmp_path / "run.yaml"]) == load_config(None, ["train.iterations=7"])
    assert base_config(load_config(None, ["train.iterations=7"]).policy) == recipe


def test_presets_apply_in_python_as_in_a_file(tmp_path: Path) -> None:
    paths = {
        "flux-kontext": (KONTEXT, "/models/any"),
        "uno": ("black-forest-labs/FLUX.1-dev",),
        "flux2": ("black-forest-labs/FLUX.2-klein-4B", "black-forest-labs/FLUX.2-klein-base-9B", "/models/any"),
        "flux2-klein-kv": ("black-forest-labs/FLUX.2-klein-9b-kv",),
        "qwen-image-edit": ("Qwen/Qwen-Image-Edit-2511",),
        "longcat-image-edit": ("meituan-longcat/LongCat-Image-Edit",),
        "joyimage-edit-plus": ("jdopensource/JoyAI-Image-Edit-Plus-Diffusers",),
        "mine.py:Policy": ("someone/model",),
    }
    for kind, path in ((kind, path) for kind, found in paths.items() for path in found):
        (tmp_path / "run.yaml").write_text(f"policy: {{kind: '{kind}', path: {path}}}\n", encoding="utf-8")
        config = load_config(tmp_path / "run.yaml")
        policy = PolicyConfig(kind=kind, path=path)
        overridden = load_config(None, [f"policy.path={path}", f"policy={{kind: '{kind}'}}"])
        assert config.policy == policy and config == Config(policy=policy) == overridden
        for key, value in preset_of(policy).values.items():
            part: object = config
            for name in key.split("."):
                part = getattr(part, name)
            assert part == value, (kind, key)
    assert PolicyConfig(kind="flux2", path="x/klein", lora={"alpha": 3}).lora == LoraConfig(rank=128, alpha=3)  # type: ignore[arg-type]
    (tmp_path / "run.yaml").write_text("policy: {kind: uno, lora: null}\nrollout: {shift: null}\n", encoding="utf-8")
    config = load_config(tmp_path / "run.yaml")
    assert config.policy.lora is None and config.rollout.shift is None, "null is a value"
    assert (config.policy.height, load_config(None, ["policy.kind=uno"]).rollout.shift) == (512, 3.0)


def test_settings_in_python_follow_the_policy_that_a_trainer_gets() -> None:
    klein = PolicyConfig(kind="flux2", path="black-forest-labs/FLUX.2-klein-4B")
    uno = PolicyConfig(kind="uno", path="black-forest-labs/FLUX.1-dev")
    args = CustomizedGRPOConfig(learning_rate=2e-5, group_size=4)
    for policy in (klein, uno):
        made, recipe = args.for_policy(policy), Config(policy=policy)
        assert made.policy == policy and made.evaluation.steps == recipe.evaluation.steps
        assert made.rollout == recipe.rollout.model_copy(update={"group_size": 4})
        assert made.train == recipe.train.model_copy(update={"learning_rate": 2e-5})
    assert (args.rollout.steps, args.for_policy(klein).rollout.steps) == (25, 4)
    given = CustomizedGRPOConfig(rollout={"steps": 25}, evaluation={"steps": 9}).for_policy(klein)
    assert (given.rollout.steps, given.evaluation.steps) == (25, 9), "given, though one is another model's default"
    copied = args.model_copy(update={"seed": 3}).for_policy(klein)
    assert (copied.seed, copied.rollout.steps) == (3, 4)
    with pytest.raises(ConfigError, match=r"has 25 weights; give one for each of rollout\.steps=4"):
        CustomizedGRPOConfig(
            weighting="table", prompt_table=[1.0] * 25, identity_table=[1.0] * 25
        ).for_policy(klein)  # fmt: skip


@pytest.mark.parametrize(
    ("pipeline", "policy", "guidance"),
    [
        ("FluxKontextPipeline", PolicyConfig(path=KONTEXT), None),  # its model card differs from its pipeline
        ("FluxPipeline", PolicyConfig(kind="uno"), "guidance"),
        ("Flux2KleinPipeline", PolicyConfig(kind="flux2", path="FLUX.2-klein-base-4B"), "true_cfg"),
        ("Flux2KleinKVPipeline", PolicyConfig(kind="flux2-klein-kv"), None),
        ("Flux2Pipeline", PolicyConfig(kind="flux2", path="FLUX.2-dev"), "guidance"),
        ("QwenImageEditPlusPipeline", PolicyConfig(kind="qwen-image-edit"), None),
        ("LongCatImageEditPipeline", PolicyConfig(kind="longcat-image-edit"), "true_cfg"),
        ("JoyImageEditPlusPipeline", PolicyConfig(kind="joyimage-edit-plus"), "true_cfg"),
    ],
)
def test_presets_are_the_defaults_of_the_pipelines(pipeline: str, policy: PolicyConfig, guidance: str | None) -> None:
    usual = {k: one.default for k, one in inspect.signature(getattr(diffusers, pipeline).__call__).parameters.items()}
    assert policy.max_sequence_length == usual.get("max_sequence_length", 512)  # LongCat's tokenizer_max_length
    assert policy.true_cfg == usual.get("true_cfg_scale", policy.true_cfg)
    if guidance is not None:
        assert getattr(policy, guidance) == usual["guidance_scale"]
    if policy.kind in ("longcat-image-edit", "joyimage-edit-plus"):
        assert Config(policy=policy).evaluation.steps == usual["num_inference_steps"]


def test_every_value_has_an_origin(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "policy:\n  kind: flux2\n  path: x/FLUX.2-klein-4B\n  lora: {alpha: 4}\n"
        "rewards:\n- {kind: dino, role: identity}\n- {kind: clip, role: prompt}\ndata: {path: pairs.jsonl}\n",
        encoding="utf-8",
    )
    overrides = ["rewards.1.weight=2", "policy.width=512"]
    origins = resolve_config(file, overrides).origins
    assert origins["policy.height"] == origins["policy.lora.rank"] == "preset of FLUX.2-klein"
    assert origins["policy.width"] == "--set policy.width=512"
    assert (origins["policy.kind"], origins["policy.lora.alpha"]) == (f"{file}:2", f"{file}:4")
    assert (origins["rewards.0.kind"], origins["rewards.0.device"]) == (f"{file}:6", "default")
    assert (origins["rewards.1.weight"], origins["train.updates"]) == ("--set rewards.1.weight=2", "default")
    assert origins["evaluation.data.path"] == "data.path"
    assert resolve_config().origins["rollout.sampler"].startswith("embedded:")
    shown = resolve_config(file, overrides).rows()
    assert ("policy.height", "1024", "preset of FLUX.2-klein") in shown
    (tmp_path / "later.yaml").write_text("rewards:\n- {kind: dino, role: identity}\n- {kind: clip, role: prompt}\n")
    later = resolve_config([file, tmp_path / "later.yaml"]).origins
    assert later["rewards.0.kind"] == f"{tmp_path / 'later.yaml'}:2", "a list is replaced as a whole"


def test_data_are_required_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.path is not set; give --data pairs\.jsonl, a DreamBench folder, or"):
        open_dataset(Config().data)
    done = cgrpo("train", "--set", "policy.path=./nowhere", "--out", "run", folder=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "data.path is not set" in done.stderr
    assert done.stdout == "" and not (tmp_path / "run").exists()
    done = cgrpo("train", "--set", "data.path=nowhere.jsonl", folder=tmp_path)
    assert done.stdout.startswith("recipe: embedded, ") and KONTEXT in done.stdout and "nowhere.jsonl" in done.stderr
