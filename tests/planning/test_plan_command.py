"""Plans of real models from their configs alone, and the refusal of what cannot fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from commands import cgrpo
from diffusers import DiffusionPipeline
from embedded import embedded
from rich.console import Console

from customized_grpo.config import Config, ConfigError, LoraConfig, PolicyConfig, RewardConfig
from customized_grpo.planning import make_plan, plan_run
from customized_grpo.planning.judges import judges_of
from customized_grpo.planning.plan import _changed, nearest_that_fits
from customized_grpo.planning.report import _told, bytes_of
from customized_grpo.planning.shapes import count
from customized_grpo.rewards import KINDS, default_path
from customized_grpo.utils.hub import ModelError
from customized_grpo.utils.outlines import config_reader, outline_judge, outline_pipeline

#: Published sizes in billions of parameters: the model cards of each, and of its text encoders.
PUBLISHED = {
    "black-forest-labs/FLUX.1-dev": {
        "transformer": 11.90, "text_encoder": 0.123, "text_encoder_2": 4.76, "vae": 0.084},
    "black-forest-labs/FLUX.1-Kontext-dev": {
        "transformer": 11.90, "text_encoder": 0.123, "text_encoder_2": 4.76, "vae": 0.084},
    "black-forest-labs/FLUX.2-dev": {"transformer": 32.2, "text_encoder": 24.0, "vae": 0.084},
    "black-forest-labs/FLUX.2-klein-4B": {"transformer": 3.88, "text_encoder": 4.02, "vae": 0.084},
    "black-forest-labs/FLUX.2-klein-9B": {"transformer": 9.08, "text_encoder": 8.19, "vae": 0.084},
    "Qwen/Qwen-Image-Edit-2509": {"transformer": 20.4, "text_encoder": 8.29, "vae": 0.127},
    "Qwen/Qwen-Image-Edit-2511": {"transformer": 20.4, "text_encoder": 8.29, "vae": 0.127},
}  # fmt: skip


@pytest.mark.parametrize("path", PUBLISHED)
def test_known_models_have_their_published_sizes(path: str) -> None:
    import diffusers

    kind = config_reader(path)("model_index.json")["_class_name"]
    pipeline = outline_pipeline(path, None, torch.bfloat16, {kind: getattr(diffusers, kind)})
    for part, billions in PUBLISHED[path].items():
        assert count(getattr(pipeline, part)).parameters / 1e9 == pytest.approx(billions, rel=0.005), part


def test_known_judges_have_their_published_sizes() -> None:
    assert count(outline_judge("facebook/dinov2-base")).parameters == pytest.approx(86.6e6, rel=0.005)
    assert count(outline_judge("openai/clip-vit-large-patch14")).parameters == pytest.approx(427.6e6, rel=0.005)
    assert count(outline_judge("yuvalkirstain/PickScore_v1")).parameters == pytest.approx(986.1e6, rel=0.005)
    assert count(outline_judge("google/siglip2-base-patch16-224")).parameters == pytest.approx(375.2e6, rel=0.005)
    # 8.29 billion with the layer that names the next token, which no reward needs.
    seven = count(outline_judge("Qwen/Qwen2-VL-7B-Instruct")).parameters
    assert seven + 152064 * 3584 == pytest.approx(8.291e9, rel=0.005)


def test_every_built_in_kind_with_a_default_model_is_counted() -> None:
    for kind in KINDS:
        role: Any = "guard" if kind == "copy-paste" else "prompt"
        judges, uncounted = judges_of([RewardConfig(kind=kind, role=role, name="x")], 512**2)
        assert (set(judges) == {"x"}) is (default_path(kind) is not None and kind not in ("vlm", "remote")), kind
        assert uncounted == [], kind
    judges, _ = judges_of(
        [RewardConfig(kind="hps-v3", role="prompt"), RewardConfig(kind="dino", role="identity")], 512**2
    )
    assert judges["hps-v3"].bytes == pytest.approx(15.5e9, rel=0.01)  # bfloat16
    assert judges["hps-v3"].activations > judges["dino"].activations > 0
    assert judges_of([RewardConfig(kind="dinno", role="identity", path="some/model")], 512**2) == ({}, [])
    cut = RewardConfig(kind="dino", role="identity", options={"segmenter": "facebook/sam2.1-hiera-large"})
    assert judges_of([cut], 512**2)[1] == ["facebook/sam2.1-hiera-large, the segmenter of the reward 'dino'"]


def configs_alone(folder: Path, to: Path) -> Path:
    """A copy of a pipeline's folder without its weights."""
    return Path(shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors")))


def hub_config(**changes: Any) -> Config:
    settings = {"device": "cpu", "height": 64, "width": 64, "reference_sizes": [(64, 64)], **changes}
    return embedded(Config, policy=embedded(PolicyConfig, **settings))


def test_a_hubs_local_copy_of_configs_is_enough(tmp_path: Path) -> None:
    folder = tiny.save_flux_kontext(tmp_path / "whole", layers=2)
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    configs_alone(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    plan = make_plan(hub_config(path="someone/tiny"), accelerator=False)
    assert plan.parameters["transformer"] == count(DiffusionPipeline.from_pretrained(folder).transformer).parameters
    missing = {(one.path, one.files): one.bytes for one in plan.downloads}
    assert missing["someone/tiny", "transformer/*.safetensors"] == 2 * plan.parameters["transformer"]
    shutil.copy(next((folder / "vae").glob("*.safetensors")), repository / "snapshots" / commit / "vae")
    again = {one.files for one in make_plan(hub_config(path="someone/tiny"), accelerator=False).downloads}
    assert again == {f"{part}/*.safetensors" for part in ("transformer", "text_encoder", "text_encoder_2")}
    assert make_plan(hub_config(path=str(folder)), accelerator=False).downloads == []


def test_what_cannot_be_outlined_is_one_line(tmp_path: Path) -> None:
    folder = configs_alone(tiny.save_flux_kontext(tmp_path / "whole"), tmp_path / "configs")

    def refused(path: str | Path, *words: str) -> None:
        with pytest.raises((ModelError, ConfigError)) as caught:
            make_plan(hub_config(path=str(path)))
        assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), caught.value

    refused("nobody/nothing", "nobody/nothing", "connect once")
    refused(tmp_path / "nowhere", "policy.path", "no such folder")
    refused("black-forest-labs/FLUX.1-dev", "is a FluxPipeline", "FluxKontextPipeline")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "NoSuchVAE"]}))
    refused(folder, "NoSuchVAE", "update")
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "transformer" / "config.json").write_text("{")
    refused(folder, "transformer/config.json", "JSON")
    with pytest.raises(ConfigError, match="class of your own"):
        make_plan(embedded(Config, policy=embedded(PolicyConfig, kind="some.module:Policy")))


def test_own_rewards_are_told_and_not_counted() -> None:
    rewards = [
        RewardConfig(kind="judges.py:mine", role="identity"),
        RewardConfig(kind="clip", role="prompt", path="embedded/reward-prompt"),
    ]
    plan = make_plan(hub_config().model_copy(update={"rewards": rewards}), accelerator=False)
    assert plan.uncounted == ["the reward 'judges.py:mine', code of your own"]


def test_judges_elsewhere_take_no_memory_of_the_policys_device_and_are_offered_as_a_remedy() -> None:
    config = embedded(Config, policy=klein().policy, rewards=[
        RewardConfig(kind="dino", role="identity", path="facebook/dinov2-base"),
        RewardConfig(kind="hps-v3", role="prompt"),
    ])  # fmt: skip
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"monitors": []})})
    beside = make_plan(config)
    keys = "rewards.0.device, rewards.1.device"
    elsewhere = _changed(config, [(keys, [None, None], ["cpu", "cpu"])])
    assert [reward.device for reward in elsewhere.rewards] == ["cpu", "cpu"]
    apart = make_plan(elsewhere)
    assert beside.device["scoring"]["rewards"] > 0 and "rewards" not in apart.device["scoring"]
    assert apart.parameters == beside.parameters and apart.needed < beside.needed
    changes = nearest_that_fits(config, apart.needed)
    assert changes is not None and make_plan(_changed(config, changes)).needed <= apart.needed
    on_cpu = _changed(config, [("policy.device", None, "cpu"), ("rewards.0.device", None, "cpu")])
    assert make_plan(on_cpu, accelerator=False).device["scoring"]["rewards"] == beside.device["scoring"]["rewards"]


def klein(**changes: Any) -> Config:
    path = "black-forest-labs/FLUX.2-klein-4B"
    policy = {"kind": "flux2", "path": path, "dtype": "bfloat16", "height": 512, "width": 512,
              "reference_sizes": [(512, 512)], "max_sequence_length": 512, "lora": LoraConfig(rank=64)}  # fmt: skip
    config = embedded(Config, policy=embedded(PolicyConfig, **{**policy, **changes}))
    return config.model_copy(update={"train": config.train.model_copy(update={"batch_size": 4})})


def test_the_nearest_settings_fit_and_each_is_needed() -> None:
    config = klein()
    needed = make_plan(config).needed
    assert nearest_that_fits(config, needed) is not None
    seen = []
    for memory in (40e9, 12e9):
        changes = nearest_that_fits(config, int(memory))
        assert changes is not None, memory
        assert make_plan(_changed(config, changes)).needed <= memory
        for change in changes:
            fewer = _changed(config, [one for one in changes if one is not change])
            assert make_plan(fewer).needed > memory, (memory, change)
        seen.append(changes)
    assert len({tuple(map(str, changes)) for changes in seen}) == 2
    assert ("policy.quantise" in {key for key, *_ in seen[-1]}) and "policy.quantise" not in {k for k, *_ in seen[0]}
    assert nearest_that_fits(hub_config(), 10**6) is None


def test_where_nothing_else_helps_smaller_pictures_are_named() -> None:
    def least(side: int) -> Config:
        config = klein(
            height=side, width=side, reference_sizes=[(side, side)], gradient_checkpointing=True, offload=True,
            quantise="nf4", quantise_text_encoders="nf4", lora=LoraConfig(rank=8),
        )  # fmt: skip
        one = {name: getattr(config, name).model_copy(update={"batch_size": 1}) for name in ("rollout", "train")}
        return config.model_copy(update=one)

    ((keys, before, after),) = nearest_that_fits(least(1024), make_plan(least(512)).needed) or []
    assert keys == "policy.height, policy.width, policy.reference_sizes"
    assert before == [1024, 1024, [[1024, 1024]]] and after in ([768, 768, [[768, 768]]], [512, 512, [[512, 512]]])
    told = _told((keys, before, after))
    assert told.startswith(f"policy.height 1024 -> {after[0]}, policy.width 1024 -> ") and "[[1024, 1024]] ->" in told


def test_a_full_tuning_that_does_not_fit_is_told_of_a_lora() -> None:
    full = nearest_that_fits(klein(lora=None), int(40e9))
    assert full is not None and "policy.lora" in {key for key, *_ in full}


def test_processes_share_the_images_and_not_the_weights() -> None:
    config = klein()
    one, four = make_plan(config), make_plan(config, processes=4)
    assert four.images == one.images
    parts = [plan.device["training"] for plan in (one, four)]
    assert parts[1]["latents of the rollout"] * 4 == parts[0]["latents of the rollout"]
    assert parts[1]["transformer"] == parts[0]["transformer"]


def test_a_moving_average_and_offloading_count() -> None:
    config = klein()
    averaged = config.model_copy(update={"train": config.train.model_copy(update={"ema": 0.99})})
    training = make_plan(averaged).device["training"]
    assert training["moving average"] == training["LoRA"]
    offloaded = make_plan(klein(offload=True))
    assert "text encoders" not in offloaded.device["training"] and "text encoders" in offloaded.device["encoding"]
    assert "text encoders" in offloaded.host


def test_true_cfg_is_twice_the_work_and_needs_a_model_that_has_it() -> None:
    base = {"path": "black-forest-labs/FLUX.2-klein-base-4B"}
    one, two = make_plan(klein(**base)), make_plan(klein(**base, true_cfg=4.0))
    assert two.sampling_evaluations == 2 * one.sampling_evaluations
    assert two.training_evaluations == 2 * one.training_evaluations
    activations = [plan.device["training"]["activations"] for plan in (one, two)]
    assert 1.8 * activations[0] < activations[1] < 2.1 * activations[0]
    with pytest.raises(ModelError, match="distilled"):
        make_plan(klein(true_cfg=4.0))


def test_a_lora_that_starts_from_another_keeps_that_one_for_the_kl() -> None:
    path = "black-forest-labs/FLUX.1-dev"
    settings: dict[str, Any] = {"kind": "uno", "path": path, "adapter": "dit_lora.safetensors"}
    fused, start = (make_plan(klein(**settings, adapter_as=way)) for way in ("fused", "start"))
    assert "untuned weights" not in fused.device["training"]
    training = start.device["training"]
    assert training["untuned weights"] == training["LoRA"] == start.host["untuned weights"]


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24e9), ("24g", 24e9), ("1.5 GiB", 1.5 * 2**30), ("8e9", 8e9), ("512MiB", 2**29)]
)
def test_sizes_are_read(text: str, size: float) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "12XB", "1.2.3GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--memory"):
        bytes_of(text)


def test_a_plan_that_fits_is_told_and_one_that_does_not_is_refused() -> None:
    console = Console(record=True, width=200)
    plan_run(klein(), console, memory="200GB", processes=1, references=1)
    told = console.export_text()
    for word in ("3,875,544,576", "optimiser state", "model evaluations", "It fits", "text_encoder/*.safetensors"):
        assert word in told
    with pytest.raises(ConfigError) as caught:
        plan_run(klein(), console, memory="24GB", processes=1, references=1)
    assert "\n" not in str(caught.value) and "gradient_checkpointing false -> true" in str(caught.value)


def test_the_command_needs_no_weights_and_exits_2_where_it_cannot_fit(tmp_path: Path) -> None:
    folder = configs_alone(tiny.save_flux_kontext(tmp_path / "whole"), tmp_path / "configs")
    (tmp_path / "run.yaml").write_text(f"policy: {{path: {folder}, device: cpu}}\n")
    (tmp_path / "more.yaml").write_text("train: {batch_size: 4096}\n")
    done = cgrpo("plan", "embedded", "run.yaml", folder=tmp_path)
    assert done.returncode == 0 and "It fits" in done.stdout, done.stderr
    done = cgrpo("plan", "embedded", "run.yaml", "more.yaml", "--memory", "100MB", folder=tmp_path)
    assert done.returncode == 2, done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "train.batch_size 4096 ->" in errors[0] and "Traceback" not in done.stderr
    assert cgrpo("plan", "nowhere.yaml", folder=tmp_path).returncode == 2
