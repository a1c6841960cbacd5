"""A policy of the user's own by its path: the guide's file as it stands, on a model that only this test defines."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import proofs
import pytest
import tiny
import torch
import yaml
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from embedded import embedded
from proofs import refused
from torch import nn
from transformers import CLIPTextModelWithProjection

from customized_grpo.config import KINDS, Config, DataConfig, PolicyConfig, RolloutConfig, TrainConfig
from customized_grpo.config.kinds import Preset
from customized_grpo.config.loading import load_config
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy, register_policy
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.reporting.card import model_card
from customized_grpo.trainer.assembly import reward_terms
from customized_grpo.trainer.rollout import sample_groups
from customized_grpo.trainer.trainer import CustomizedGRPOTrainer
from customized_grpo.utils.records import read_records

GUIDE = Path(__file__).parents[2] / "docs" / "add-a-model.md"


@pytest.fixture(scope="module")
def blocks() -> dict[str, str]:
    """The guide's files by their names."""
    return dict(
        re.findall(r"^```\w+ (\S+\.\w+)\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny StableDiffusion3Pipeline of the shapes that this test gives it."""
    parts, clip = tiny.flux_kontext(), tiny.clip_tokenizer()
    text = tiny.clip_config(clip, 8, 2)
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
            joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=32, out_channels=4,
            pos_embed_max_size=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=parts.vae,
        text_encoder=CLIPTextModelWithProjection(text), tokenizer=clip,
        text_encoder_2=CLIPTextModelWithProjection(text), tokenizer_2=clip,
        text_encoder_3=parts.text_encoder_2, tokenizer_3=parts.tokenizer_2,
    )  # fmt: skip
    assert isinstance(pipeline.vae, AutoencoderKL)
    generator = torch.Generator().manual_seed(0)
    for weight in pipeline.transformer.parameters():
        nn.init.normal_(weight, 0.0, 0.2, generator=generator)
    folder = tmp_path_factory.mktemp("sd3")
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture
def own(blocks: dict[str, str], sd3: Path, tmp_path: Path) -> Callable[..., PolicyConfig]:
    """The configuration of the guide's policy on the tiny model."""
    file = tmp_path / "diptych.py"
    file.write_text(blocks["diptych.py"], encoding="utf-8")

    def make(**changes: object) -> PolicyConfig:
        settings = {"kind": f"{file}:DiptychPolicy", "path": str(sd3), "device": "cpu", "height": 32, "width": 24}
        return embedded(PolicyConfig, max_sequence_length=24, **{**settings, **changes})

    return make


def test_the_guides_settings_are_valid(blocks: dict[str, str], tmp_path: Path) -> None:
    assert set(blocks) == {"diptych.py", "run.yaml"}
    (tmp_path / "run.yaml").write_text(blocks["run.yaml"])
    assert load_config(tmp_path / "run.yaml").policy.kind == yaml.safe_load(blocks["run.yaml"])["policy"]["kind"]


def test_the_guides_model_trains(own: Callable[..., PolicyConfig], tmp_path: Path) -> None:
    config = embedded(
        Config,
        policy=own(),
        data=embedded(DataConfig, size=3),
        rewards=proofs.REWARDS,
        rollout=embedded(RolloutConfig, steps=3, group_size=3, pairs=2),
        train=embedded(TrainConfig, iterations=1, updates=1),
    )
    policy = build_policy(config.policy)
    CustomizedGRPOTrainer(
        policy, reward_terms(config.rewards, policy.device), open_dataset(config.data), None, config, tmp_path / "run"
    ).train()
    tuned = policy.trainable()
    untuned = build_policy(config.policy).trainable()
    assert any(not torch.equal(weight, untuned[name]) for name, weight in tuned.items())
    (record,) = read_records(tmp_path / "run" / "metrics.jsonl")
    assert record["gradient_norm"] > 0 and record["clip_fraction"] == 0


def test_the_guides_model_stands_the_proofs(own: Callable[..., PolicyConfig], sd3: Path, tmp_path: Path) -> None:
    policy = build_policy(own())
    pair = open_dataset(embedded(DataConfig, size=1))[0]
    conditions = policy.encode(pair.prompt, pair.references)
    assert policy.latent_shape == (4, 8, 6)
    proofs.frozen_row(conditions)
    proofs.tune(policy)
    rollout = embedded(RolloutConfig, steps=4, group_size=2, pairs=1)
    keys, every = [("a", 0), ("a", 1)], range(rollout.steps - 1)
    (sampled,) = sample_groups(policy, [conditions] * 2, keys, rollout, every, seed=0, iteration=0)
    proofs.ratios_are_one(policy, sampled, rollout.sampler, rollout.eta)
    other = build_policy(own())
    policy.save(tmp_path / "lora")
    other.load(tmp_path / "lora")
    assert all(torch.equal(weight, other.trainable()[name]) for name, weight in policy.trainable().items())
    stock = StableDiffusion3Pipeline.from_pretrained(sd3)
    stock.load_lora_weights(tmp_path / "lora")
    images = policy.decode(sampled.clean)
    assert images.shape == (2, 3, 32, 24) and images.min() >= 0 and images.max() <= 1
    refused(lambda: policy.encode("a dog", []), "one reference, not 0")
    refused(lambda: build_policy(own(lora=None)), "policy.lora", "rank")


def test_a_registered_class_brings_its_preset_and_its_example_call(folder: Path) -> None:
    @register_policy("wide-kontext")
    class Wide(FluxKontextPolicy):
        presets = (Preset("wide", {"policy.width": 48, "rollout.shift": 2.0}, path="wide"),)
        example_call = "image=reference,\n    wide={width},"

    try:
        assert Wide.from_pretrained(str(folder), device="meta").config.width == 1024
        config = Config(policy=PolicyConfig(kind="wide-kontext", path="someones/Wide"))
        assert (config.policy.width, config.rollout.shift, config.policy.height) == (48, 2.0, 1024)
        assert "    image=reference,\n    wide=48,\n    height=1024,\n" in str(model_card(config))
    finally:
        del KINDS["wide-kontext"]


def test_what_is_no_policy_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "class Empty:\n    def __init__(self, config):\n        pass\n\n\nclass Broken:\n"
        "    def __init__(self, config):\n        raise KeyError('what\\nnot')\n"
    )

    def of(kind: str) -> Callable[[], object]:
        return lambda: build_policy(embedded(PolicyConfig, kind=kind))

    refused(of(f"{file}:Empty"), "policy.kind", "Empty has no", "protocols.Policy")
    refused(of(f"{file}:Broken"), "policy.kind", "could not be constructed", "KeyError")
    with pytest.raises(
        ValueError, match=r"flux-kontext, uno, flux2, flux2-klein-kv, qwen-image-edit, .*joyimage-edit-plus, or package"
    ):
        load_config(None, ["policy.kind=flux3"])
