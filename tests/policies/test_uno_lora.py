"""UNO's LoRA against the stock pipeline with the same file, as a start of training, and its checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from proofs import PROMPT, apart, half_way, random_image, refused, schemes, stock, tune
from tiny_uno import euler, policy_of, save, stock_image, uno_lora
from torch import Tensor, nn

import customized_grpo
from customized_grpo.config import LoraConfig
from customized_grpo.policies.adapters import fuse
from customized_grpo.policies.uno import uno_lora_by_layer


def fuse_uno_lora(transformer: Any, path: Path) -> None:
    fuse(transformer, uno_lora_by_layer(transformer, path))


def test_the_stock_pipeline_reads_the_same_file_to_the_same_end(
    flux_folder: Path, uno_adapter: Path, tmp_path: Path
) -> None:
    policy = policy_of(flux_folder, adapter=str(uno_adapter))
    pipeline = stock(flux_folder)
    pipeline.load_lora_weights(uno_adapter.parent, weight_name=uno_adapter.name, adapter_name="uno")
    assert apart(euler(policy), stock_image(pipeline, policy)) < 1e-4
    # And the LoRA trained on top, beside it.
    before = euler(policy)
    tune(policy)
    policy.save(tmp_path)
    pipeline.load_lora_weights(tmp_path, adapter_name="trained")
    pipeline.set_adapters(["uno", "trained"], [1.0, 1.0])
    assert apart(euler(policy), stock_image(pipeline, policy)) < 1e-4
    assert apart(euler(policy), before) > 1e-2


@schemes
def test_it_is_fused_before_weights_are_quantised(
    flux_folder: Path, uno_adapter: Path, tmp_path: Path, scheme: str, package: str
) -> None:
    """As a pipeline that has it in its weights already, and is quantised while it is loaded."""
    pytest.importorskip(package)
    pipeline = stock(flux_folder)
    fuse_uno_lora(pipeline.transformer, uno_adapter)
    pipeline.save_pretrained(tmp_path, safe_serialization=True)
    policy, expected = (
        policy_of(flux_folder, adapter=str(uno_adapter), quantise=scheme),
        policy_of(tmp_path, quantise=scheme),
    )
    assert type(policy._transformer.transformer_blocks[0].attn.to_q.base_layer.weight) is not nn.Parameter
    conditions = policy.encode(PROMPT, [random_image(16, 24, 0)])
    assert torch.equal(half_way(policy, conditions), half_way(expected, conditions))
    assert apart(half_way(policy, conditions), half_way(policy_of(flux_folder, quantise=scheme), conditions)) > 1e-2


START: dict[str, Any] = {"adapter_as": "start", "lora": LoraConfig(rank=8, alpha=3)}


def test_a_resumed_run_has_the_untuned_model_that_it_began_with(
    flux_folder: Path, uno_adapter: Path, tmp_path: Path
) -> None:
    policy, resumed = (policy_of(flux_folder, adapter=str(uno_adapter), **START) for _ in range(2))
    conditions = policy.encode(PROMPT, [random_image(16, 24, 0), random_image(24, 16, 1)])
    begun = half_way(policy, conditions)
    tune(policy)
    tuned = half_way(policy, conditions)
    assert apart(tuned, begun) > 1e-3
    policy.save(tmp_path)
    resumed.load(tmp_path)
    assert torch.equal(half_way(resumed, conditions), tuned)
    with resumed.reference():
        assert torch.equal(half_way(resumed, conditions), begun)


def test_a_file_of_the_released_ones_keys_fits_flux_dev(tmp_path: Path) -> None:
    """At full width and depth, its rank of 512 cut to 1; the transformer by its published config."""
    published = json.loads(
        (Path(customized_grpo.__file__).parent / "utils" / "known_models.json").read_text(encoding="utf-8")
    )
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(published["parts"]["flux.1-transformer"])
    weights = uno_lora(rank=1, width=3072, layers=19, singles=38)
    assert len(weights) == 19 * 8 + 38 * 4
    by_layer = uno_lora_by_layer(transformer, save(tmp_path / "dit_lora.safetensors", weights))
    moved = {
        name
        for name, layer in transformer.named_modules()
        if isinstance(layer, nn.Linear)
        and (".attn." in name or (name.startswith("single") and name.endswith("proj_out")))
    }
    assert by_layer.keys() == moved and len(moved) == 19 * 8 + 38 * 4
    for name, (down, up) in by_layer.items():
        assert (len(up), down.shape[1]) == tuple(transformer.get_submodule(name).weight.shape), name


def test_fusing_rounds_once(flux_folder: Path, uno_adapter: Path) -> None:
    exact = dict(policy_of(flux_folder, lora=None, adapter=str(uno_adapter)).trainable())
    plain = dict(policy_of(flux_folder, lora=None, dtype="bfloat16").trainable())
    fused = dict(policy_of(flux_folder, lora=None, dtype="bfloat16", adapter=str(uno_adapter)).trainable())
    name = "single_transformer_blocks.0.proj_out.weight"
    weights = uno_lora()
    up, down = (weights[f"single_blocks.0.processor.proj_lora.{half}.weight"] for half in ("up", "down"))
    assert torch.equal(fused[name], (plain[name].float() + up @ down).to(torch.bfloat16))
    assert apart(fused[name].float(), exact[name]) < 0.05


def test_a_bad_adapter_is_refused_and_changes_nothing(flux_folder: Path, tmp_path: Path) -> None:
    transformer = stock(flux_folder).transformer
    before = {name: weight.clone() for name, weight in transformer.state_dict().items()}
    good, key = uno_lora(), "single_blocks.1.processor.proj_lora.down.weight"
    layer = "single_transformer_blocks.1.proj_out"

    def file(changes: dict[str, Tensor], without: str = "") -> Path:
        weights = {name: weight for name, weight in {**good, **changes}.items() if name != without}
        return save(tmp_path / "dit_lora.safetensors", weights)

    for name in ("double_blocks.1.processor.qkv_lora.down.weight", "single_blocks.1.processor.proj_lora.alpha"):
        refused(lambda name=name: fuse_uno_lora(transformer, file({name: torch.ones(6, 32)})), name, "no key of UNO")
    refused(lambda: fuse_uno_lora(transformer, file({}, key)), key, "lacks")
    refused(lambda: fuse_uno_lora(transformer, file({key: torch.ones(6, 32)})), layer, "(rank, 160)")
    refused(lambda: fuse_uno_lora(transformer, file({key: torch.ones(5, 160)})), layer, "(32, rank)")
    refused(lambda: fuse_uno_lora(transformer, file({key: torch.ones(6)})), layer)
    deeper = save(tmp_path / "deeper.safetensors", uno_lora(layers=3))
    refused(lambda: fuse_uno_lora(transformer, deeper), "policy.path has no", "transformer_blocks.2")
    refused(lambda: fuse_uno_lora(transformer, save(tmp_path / "none.safetensors", {})), "no weights")
    (tmp_path / "text.safetensors").write_text("not a file of weights")
    refused(lambda: fuse_uno_lora(transformer, tmp_path / "text.safetensors"), "not a LoRA in safetensors")
    refused(lambda: policy_of(tmp_path / "nowhere", adapter=str(tmp_path / "nothing")), "adapter", "no such file")
    assert all(torch.equal(weight, before[name]) for name, weight in transformer.state_dict().items())
