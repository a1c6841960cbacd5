"""A merged pipeline, loaded by its own class, generates the same images as the base with the run's LoRA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from embedded import embedded
from PIL import Image
from reporting.export.conftest import PIPELINES
from safetensors import safe_open
from torch import nn

from customized_grpo.config import ConfigError, TrainConfig
from customized_grpo.config.loading import load_config
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Policy
from customized_grpo.reporting.lora import merge_run
from customized_grpo.trainer.checkpoint import save_checkpoint
from customized_grpo.trainer.optimizer import build_optimizer
from customized_grpo.trainer.parts import policy_with_adapter
from customized_grpo.trainer.processes import ALONE
from customized_grpo.trainer.rollout import image_noise, sample_images


def draw(policy: Policy, photo: Image.Image) -> torch.Tensor:
    conditions = policy.encode("a red bird in the snow", [photo])
    return sample_images(policy, conditions, image_noise(policy, 1, "merge"), policy.sigmas(3))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("flux2", {}), ("flux-kontext", {"lora": None})],
    ids=["lora", "full"],
)
def test_a_merged_pipeline_generates_the_runs_images(
    kind: str, settings: dict[str, object], make_run: Callable[..., Path], tmp_path: Path, photo: Image.Image
) -> None:
    base = PIPELINES[kind](tmp_path / "base")
    run, out = make_run(base, kind=kind, **settings), tmp_path / "out"
    merge_run(run, out)
    assert type(DiffusionPipeline.from_pretrained(out)) is type(DiffusionPipeline.from_pretrained(base))
    config = load_config(run / "config.yaml")
    expected = draw(policy_with_adapter(config, run), photo)
    plain = build_policy(config.policy.model_copy(update={"path": str(out)}))
    assert (draw(plain, photo) - expected).abs().max() < 1e-4
    assert (draw(build_policy(config.policy), photo) - expected).abs().max() > 1e-2
    files = [path for path in out.rglob("*") if path.is_file()]
    assert not [path.name for path in files if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
    private = [str(folder).encode() for folder in (tmp_path, run)]
    assert not [path for path in files if any(secret in path.read_bytes() for secret in private)]
    with safe_open(out / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "lora" in name]  # noqa: SIM118


def test_a_sum_in_half_precision_is_rounded_once(finished: Path, tmp_path: Path) -> None:
    merge_run(finished, tmp_path / "full")
    merge_run(finished, tmp_path / "half", "bfloat16")
    full, half = (DiffusionPipeline.from_pretrained(tmp_path / name, dtype=dtype)
                  for name, dtype in (("full", torch.float32), ("half", torch.bfloat16)))  # fmt: skip
    for name, part in half.components.items():
        if isinstance(part, nn.Module):
            with safe_open(next((tmp_path / "half" / name).glob("*.safetensors")), "pt") as file:
                assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}, name  # noqa: SIM118
    rounded = full.transformer.to(torch.bfloat16).state_dict()
    for name, weight in half.transformer.state_dict().items():
        assert torch.equal(weight, rounded[name]), name


def test_attention_that_only_a_gpu_has_does_not_matter(copied: Path, tmp_path: Path) -> None:
    config = copied / "config.yaml"
    text = config.read_text(encoding="utf-8")
    assert "attention: auto" in text
    config.write_text(text.replace("attention: auto", "attention: cudnn"), encoding="utf-8")
    merge_run(copied, tmp_path / "out")
    assert (tmp_path / "out" / "model_index.json").is_file()


def test_what_cannot_be_merged_is_refused(copied: Path, tmp_path: Path) -> None:
    run = copied
    with pytest.raises(ConfigError, match="is not empty"):
        merge_run(run, run)
    policy = build_policy(load_config(run / "config.yaml").policy)
    optimizer = build_optimizer(list(policy.trainable().values()), embedded(TrainConfig), ALONE)
    save_checkpoint(run / "checkpoints", 2, policy, optimizer, keep=1)
    with pytest.raises(ConfigError, match=r"not finished, 2 of 3 iterations .* --resume"):
        merge_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
