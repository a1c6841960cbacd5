"""Plans from configs alone, and the refusal of runs that cannot fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from embedded import embedded
from typer.testing import CliRunner

import customized_grpo as cg
from customized_grpo.cli import app
from customized_grpo.config import KINDS, Config, ConfigError, LoraConfig, PolicyConfig, RewardConfig
from customized_grpo.planning import make_plan
from customized_grpo.planning.remedies import Change, changed, nearest_that_fits
from customized_grpo.planning.report import bytes_of
from customized_grpo.planning.shapes import count
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.utils.hub import ModelError
from customized_grpo.utils.outlines import config_reader, outline_pipeline, outline_reward

#: Published sizes in billions of parameters: the model cards of each, and of its text encoders.
PUBLISHED = {
    "black-forest-labs/FLUX.1-dev": {
        "transformer": 11.90, "text_encoder": 0.123, "text_encoder_2": 4.76, "vae": 0.084},
    "black-forest-labs/FLUX.1-Kontext-dev": {
        "transformer": 11.90, "text_encoder": 0.123, "text_encoder_2": 4.76, "vae": 0.084},
    "black-forest-labs/FLUX.2-dev": {"transformer": 32.2, "text_encoder": 24.0, "vae": 0.084},
    "black-forest-labs/FLUX.2-klein-4B": {"transformer": 3.88, "text_encoder": 4.02, "vae": 0.084},
    "black-forest-labs/FLUX.2-klein-9B": {"transformer": 9.08, "text_encoder": 8.19, "vae": 0.084},
    "black-forest-labs/FLUX.2-klein-9b-kv": {"transformer": 9.08, "text_encoder": 8.19, "vae": 0.084},
    "Qwen/Qwen-Image-Edit-2511": {"transformer": 20.4, "text_encoder": 8.29, "vae": 0.127},
    # "6B" in its report (arXiv 2512.07584), of 10 double and 20 single blocks.
    "meituan-longcat/LongCat-Image-Edit": {"transformer": 6.27, "text_encoder": 8.29, "vae": 0.084},
    # Half the bytes of the files, which are bfloat16: 32.5, 17.5 and 0.254 GB.
    "jdopensource/JoyAI-Image-Edit-Plus-Diffusers": {"transformer": 16.26, "text_encoder": 8.77, "vae": 0.127},
}  # fmt: skip
PUBLISHED_REWARDS = {
    "facebook/dinov2-base": 86.6e6,
    "facebook/dinov3-vitb16-pretrain-lvd1689m": 86e6,  # as its repository rounds it
    "facebook/sam2.1-hiera-small": 46e6,  # so is this one
    "openai/clip-vit-large-patch14": 427.6e6,
    "yuvalkirstain/PickScore_v1": 986.1e6,
    "google/siglip2-base-patch16-224": 375.2e6,
    "Qwen/Qwen2-VL-7B-Instruct": 8.291e9 - 152064 * 3584,  # without the layer that predicts tokens
}


@pytest.mark.parametrize("path", PUBLISHED)
def test_known_models_have_their_published_sizes(path: str) -> None:
    import diffusers

    kind = config_reader(path)("model_index.json")["_class_name"]
    pipeline = outline_pipeline(path, None, torch.bfloat16, {kind: getattr(diffusers, kind)})
    for part, billions in PUBLISHED[path].items():
        assert count(getattr(pipeline, part)).parameters / 1e9 == pytest.approx(billions, rel=0.005), part


def test_known_reward_models_have_their_published_sizes() -> None:
    for path, parameters in PUBLISHED_REWARDS.items():
        assert count(outline_reward(path)).parameters == pytest.approx(parameters, rel=0.005), path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline, configs and weights."""
    return tiny.save_flux_kontext(tmp_path_factory.mktemp("plan") / "whole", layers=2)


@pytest.fixture
def config(folder: Path) -> Callable[..., Config]:
    """The embedded recipe with the tiny pipeline and changes of its policy."""

    def make(**changes: Any) -> Config:
        settings = {"path": str(folder), "device": "cpu", "lora": LoraConfig(rank=16), **changes}
        return embedded(Config, policy=embedded(PolicyConfig, **settings))

    return make


def configs_alone(folder: Path, to: Path) -> Path:
    """Copy a pipeline's folder without its weights."""
    return Path(shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors")))


def needed(config: Config, *changes: Change) -> int:
    return make_plan(changed(config, *changes), accelerator=False).needed


def test_a_hubs_local_copy_of_configs_is_enough(folder: Path, config: Callable[..., Config], tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    configs_alone(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    plan = make_plan(config(path="someone/tiny"), accelerator=False)
    missing = {(one.path, one.files): one.bytes for one in plan.downloads}
    assert missing["someone/tiny", "transformer/*.safetensors"] == 2 * plan.parameters["transformer"]
    shutil.copy(next((folder / "vae").glob("*.safetensors")), repository / "snapshots" / commit / "vae")
    again = {one.files for one in make_plan(config(path="someone/tiny"), accelerator=False).downloads}
    assert again == {f"{part}/*.safetensors" for part in ("transformer", "text_encoder", "text_encoder_2")}
    assert make_plan(config(), accelerator=False).downloads == []


def test_models_without_an_outline_are_refused_in_one_line(
    folder: Path, config: Callable[..., Config], tmp_path: Path
) -> None:
    copy = configs_alone(folder, tmp_path / "configs")

    def refused(*words: str, **changes: Any) -> None:
        with pytest.raises((ModelError, ConfigError)) as caught:
            make_plan(config(**changes))
        assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), caught.value

    refused("nobody/nothing", "connect once", path="nobody/nothing")
    refused("policy.path", "no such folder", path=str(tmp_path / "nowhere"))
    refused("is a FluxPipeline", "FluxKontextPipeline", path="black-forest-labs/FLUX.1-dev")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "NoSuchVAE"]}))
    refused("NoSuchVAE", "update", path=str(copy))
    (copy / "model_index.json").write_text(json.dumps(index))
    (copy / "transformer" / "config.json").write_text("{")
    refused("transformer/config.json", "JSON", path=str(copy))
    refused("policy.kind: there is no file gone.py", kind="gone.py:Policy")
    refused("json:loads has no plan; derive the class from PipelinePolicy", kind="json:loads")


def test_a_policy_of_ones_own_is_planned_by_name_and_by_path(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "half", KINDS["flux-kontext"])
    KINDS.pop("half")

    @cg.register_policy("half")
    class Half(FluxKontextPolicy):
        lora_targets = ("to_q",)

    file = tmp_path / "half.py"
    file.write_text(
        "from customized_grpo.policies.flux_kontext import FluxKontextPolicy\n\n"
        "class Half(FluxKontextPolicy):\n    lora_targets = ('to_q',)\n"
    )
    built_in = make_plan(config(), accelerator=False)
    for kind in ("half", f"{file}:Half"):
        plan = make_plan(config(kind=kind), accelerator=False)
        assert plan.parameters == built_in.parameters and 0 < plan.trainable < built_in.trainable


def test_reward_models_on_another_device_take_no_memory_and_are_a_remedy(config: Callable[..., Config]) -> None:
    rewards = [
        RewardConfig(kind="dino", role="identity", path="facebook/dinov2-base", options={"segmenter": "some/sam"}),
        RewardConfig(kind="hps-v3", role="prompt"),
        RewardConfig(kind="scorers.py:mine", role="prompt", name="mine"),
    ]
    ours = config(device=None).model_copy(update={"rewards": rewards})
    plan = make_plan(ours)
    bfloat16, float32 = 2, 4
    sizes = PUBLISHED_REWARDS
    assert plan.device["scoring"]["rewards"] == pytest.approx(
        float32 * sizes["facebook/dinov2-base"] + bfloat16 * sizes["Qwen/Qwen2-VL-7B-Instruct"], rel=0.01
    )
    assert plan.uncounted == ["some/sam, the segmenter of the reward 'dino'", "the reward 'mine', code of your own"]
    elsewhere = {"rewards.0.device": "cpu", "rewards.1.device": "cpu"}
    apart = make_plan(changed(ours, elsewhere))
    assert apart.device["scoring"]["rewards"] < 1e7, "the embedded monitors"
    assert apart.parameters == plan.parameters
    assert nearest_that_fits(ours, apart.needed) is not None and apart.needed < plan.needed


def test_the_nearest_settings_fit_and_each_is_needed(config: Callable[..., Config]) -> None:
    ours = config()
    assert nearest_that_fits(ours, needed(ours), accelerator=False) is not None
    least = {"train.batch_size": 1, "rollout.batch_size": 1, "policy.gradient_checkpointing": True}
    memory = needed(ours, least)
    found = nearest_that_fits(ours, memory, accelerator=False)
    assert found is not None and "policy.quantise" not in found and needed(ours, found) <= memory
    for key in found:
        assert needed(ours, {other: value for other, value in found.items() if other != key}) > memory, key
    assert nearest_that_fits(ours, 10**4, accelerator=False) is None


def test_the_last_remedy_is_smaller_images(config: Callable[..., Config]) -> None:
    def least(side: int) -> Config:
        small = config(
            height=side, width=side, reference_sizes=[(side, side)], gradient_checkpointing=True, offload=True,
            offload_activations=True, quantise="nf4", quantise_text_encoders="nf4", lora=LoraConfig(rank=8),
        )  # fmt: skip
        devices = {f"rewards.{i}.device": "cpu" for i in range(2)} | {
            f"evaluation.monitors.{i}.device": "cpu" for i in range(3)
        }
        return changed(small, {"rollout.batch_size": 1, "train.batch_size": 1, **devices})

    found = nearest_that_fits(least(512), needed(least(256)), accelerator=False) or {}
    assert list(found) == ["policy.height", "policy.width", "policy.reference_sizes"]
    assert found["policy.height"] in (384, 256) and found["policy.reference_sizes"] == [[found["policy.height"]] * 2]


def test_settings_change_the_plan(config: Callable[..., Config]) -> None:
    ours = config()
    one, four = make_plan(ours), make_plan(ours, processes=4)
    assert four.images == one.images
    assert four.device["training"]["latents of the rollout"] * 4 == one.device["training"]["latents of the rollout"]
    assert four.device["training"]["transformer"] == one.device["training"]["transformer"]
    averaged = make_plan(changed(ours, {"train.ema": 0.99})).device["training"]
    assert averaged["moving average"] == averaged["LoRA"]
    offloaded = make_plan(config(offload=True))
    assert "text encoders" not in offloaded.device["training"] and "text encoders" in offloaded.device["encoding"]
    assert "text encoders" in offloaded.host
    full = make_plan(config(lora=None)).device["training"]
    assert full["untuned weights"] == full["gradients"] == full["transformer"]
    guided = make_plan(config(true_cfg=2.0))
    assert guided.sampling_evaluations == 2 * one.sampling_evaluations
    assert guided.training_evaluations == 2 * one.training_evaluations
    activations = [plan.device["training"]["activations"] for plan in (one, guided)]
    assert 1.8 * activations[0] < activations[1] < 2.1 * activations[0]


@pytest.mark.parametrize(("text", "size"), [("24GB", 24e9), ("24g", 24e9), ("1.5 GiB", 1.5 * 2**30), ("512MiB", 2**29)])
def test_sizes_are_parsed(text: str, size: float) -> None:
    assert bytes_of(text) == size


def test_the_command_needs_no_weights_and_exits_with_2_if_the_run_cannot_fit(folder: Path, tmp_path: Path) -> None:
    copy = configs_alone(folder, tmp_path / "configs")
    (tmp_path / "run.yaml").write_text(f"policy: {{path: {copy}, device: cpu, lora: {{rank: 16}}, true_cfg: 4.0}}\n")
    (tmp_path / "more.yaml").write_text("train: {batch_size: 4096}\n")

    def plan(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["plan", "embedded", str(tmp_path / "run.yaml"), *arguments])

    done = plan()
    assert done.exit_code == 0, done.stderr
    twice = "Each step has two: policy.true_cfg is 4"
    shown = " ".join(done.stdout.split())
    assert all(
        word in shown for word in ("optimiser state", "model evaluations", twice, "It fits", "a LoRA of rank 16")
    ), shown
    done = plan(str(tmp_path / "more.yaml"), "--memory", "100MB")
    assert done.exit_code == 2, done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert line.startswith("error:") and "train.batch_size 4096 ->" in line
    assert plan("nowhere.yaml").exit_code == 2
