"""Planned memory against tiny real models: parameters and stored tensors exactly, activations within a factor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import tiny
import tiny_flux2
import torch
from embedded import embedded
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from customized_grpo.config import Config, LoraConfig, PolicyConfig, RolloutConfig, TrainConfig, WindowConfig
from customized_grpo.planning import make_plan, shapes
from customized_grpo.planning.plan import objective_plans
from customized_grpo.planning.shapes import Model, count, measure, shapes_of
from customized_grpo.policies import build_policy
from customized_grpo.policies.pipelines import PipelinePolicy
from customized_grpo.trainer.grpo import Items, sample_trained_steps
from customized_grpo.trainer.rollout import sample_groups
from customized_grpo.trainer.windows import stochastic_steps


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: tmp_path_factory.mktemp("planned") / kind for kind in ("flux-kontext", "uno", "flux2")}
    tiny.save_flux_kontext(made["flux-kontext"], layers=4)
    tiny.save_flux(made["uno"], layers=2)
    tiny_flux2.klein(layers=4).save_pretrained(made["flux2"])
    made["flux2-klein-kv"] = made["flux2"].with_name("kv")
    tiny_flux2.klein_kv(layers=4).save_pretrained(made["flux2-klein-kv"])
    return made


def config_of(folders: dict[str, Path], kind: str, **changes: Any) -> PolicyConfig:
    settings = {"device": "cpu", "height": 64, "width": 48, "reference_sizes": [(32, 32)], "lora": LoraConfig(rank=4)}
    return embedded(PolicyConfig, kind=kind, path=str(folders[kind]), max_sequence_length=40, **{**settings, **changes})


def built(config: PolicyConfig) -> PipelinePolicy:
    policy = build_policy(config)
    assert isinstance(policy, PipelinePolicy)
    return policy


def conditions(policy: PipelinePolicy) -> Any:
    return policy.encode("a red bird " * 30, [Image.radial_gradient("L").convert("RGB")])


def saved_bytes(policy: PipelinePolicy, compute: Callable[[], torch.Tensor]) -> int:
    """Bytes of the distinct storages that a real computation saves for its backward pass, without weights."""
    storages: dict[int, int] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in policy._transformer.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = compute()
    assert kept.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        ("flux-kontext", LoraConfig(rank=4)),
        ("flux-kontext", None),
        ("flux2", LoraConfig(rank=4)),
        pytest.param("uno", LoraConfig(rank=4), marks=pytest.mark.slow),  # the transformer of FLUX.1 Kontext
    ],
)
def test_sizes_are_those_of_the_real_model(
    folders: dict[str, Path], kind: str, lora: LoraConfig | None, dtype: str
) -> None:
    config = config_of(folders, kind, lora=lora, dtype=dtype)
    found, policy = shapes_of(config, 1), built(config)
    trained = policy.trainable()
    own = 0 if lora is None else sum(weight.numel() for weight in trained.values())
    assert (found.trained, found.trained_tensors) == (sum(w.numel() for w in trained.values()), len(trained))
    assert found.trained_bytes == sum(weight.nbytes for weight in trained.values())
    assert found.transformer.parameters == count(policy._transformer).parameters - own
    for name, model in {**found.text_encoders, "vae": found.vae}.items():
        assert model.parameters == sum(weight.numel() for weight in getattr(policy._pipeline, name).parameters()), name
    frozen = [w for n, w in policy._transformer.named_parameters() if ".lora_" not in n]
    assert found.transformer.bytes(4 if dtype == "float32" else 2) == sum(weight.nbytes for weight in frozen)
    assert found.latent == torch.Size(policy.latent_shape).numel()
    one, batch = conditions(policy), 3
    assert found.condition == sum(row.nbytes for row in one.rows.values())
    rows = one.select(torch.zeros(batch, dtype=torch.long))
    latents, sigma = torch.randn(batch, *policy.latent_shape), torch.full((batch,), 0.5)
    saved = saved_bytes(policy, lambda: policy.velocity(latents, sigma, rows))
    # The peak of the backward pass has the gradients of a block on top of all that was saved.
    assert saved <= 1.02 * batch * found.training <= 1.02 * 1.5 * saved
    optimizer = torch.optim.AdamW(trained.values())
    for weight in trained.values():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    state = [value for entries in optimizer.state.values() for value in entries.values()]
    planned = make_plan(embedded(Config, policy=config), accelerator=False).device["training"]
    assert planned["optimiser state"] == sum(tensor.nbytes for tensor in state)


@pytest.mark.parametrize(
    ("window", "ratio"), [(None, "plain"), (None, "guard"), (WindowConfig(size=2, start=1), "plain")]
)
def test_rollouts_and_transitions_are_exact(
    folders: dict[str, Path], window: WindowConfig | None, ratio: Literal["plain", "guard"]
) -> None:
    config = config_of(folders, "flux-kontext")
    policy = built(config)
    one = conditions(policy)
    rollout, updates = embedded(RolloutConfig, steps=5, group_size=6, pairs=1, batch_size=4, window=window), 3
    keys = [("pair", number) for number in range(6)]
    stochastic = stochastic_steps(rollout, 0, 0)
    trained = sample_trained_steps(stochastic, 0.6, 2, 0, keys)  # some in each batch are apart, as the plan assumes
    kept = {"trained": trained, "means": ratio == "guard"}
    sampled = list(sample_groups(policy, [one] * 6, keys, rollout, stochastic, seed=0, iteration=0, **kept))
    items = Items.chosen(sampled[0], {0, 3}, trained, torch.zeros(6, trained.shape[1]))
    numbers = ("same", "condition_rows")
    tensors = [value for name, value in vars(items).items() if isinstance(value, torch.Tensor) and name not in numbers]
    train = embedded(TrainConfig, updates=updates, trained_fraction=0.6, ratio=ratio)
    plan = make_plan(embedded(Config, policy=config, rollout=rollout, train=train), accelerator=False)
    assert plan.device["training"]["transitions"] == sum(tensor.nbytes for tensor in tensors)
    assert plan.device["sampling"]["latents of the rollout"] == sum(b.nbytes + b.clean.nbytes for b in sampled)
    assert (plan.images, plan.sampling_evaluations, plan.training_evaluations) == (6, 30, 6 if window else 12)


def test_objectives_have_the_evaluations_and_operations_of_real_ones(folders: dict[str, Path]) -> None:
    config = config_of(folders, "flux-kontext", kernels="off", attention="math")
    policy = built(config)
    one, latents, sigma = conditions(policy), torch.zeros(1, *policy.latent_shape), torch.ones(1)
    with FlopCounterMode(display=False) as counter:
        velocity = policy.velocity(latents, sigma, one)
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        velocity.square().mean().backward()
    backward = counter.get_total_flops()
    rollout, train = embedded(RolloutConfig, steps=5, group_size=6, pairs=2), embedded(TrainConfig, kl_weight=0.1)
    whole = embedded(Config, policy=config, rollout=rollout, train=train)
    plans = objective_plans(whole, accelerator=False)
    assert {name: plan.training_evaluations for name, plan in plans.items()} == {"grpo": 48, "awm": 36, "nft": 36}
    assert {name: plan.reference_evaluations for name, plan in plans.items()} == {"grpo": 48, "awm": 72, "nft": 72}
    for plan in plans.values():
        evaluations = plan.sampling_evaluations + plan.reference_evaluations + plan.training_evaluations
        assert plan.flops == evaluations * forward + plan.training_evaluations * backward
    awm = plans["awm"].device["training"]
    assert awm["latents of the rollout"] == 12 * latents.nbytes and "transitions" not in awm


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("flux-kontext", 0.02), pytest.param("flux2-klein-kv", 0.03, marks=pytest.mark.slow)]
)
def test_extrapolating_from_few_blocks_gives_all_blocks(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str, tolerance: float
) -> None:
    for checkpointing in (False, True):
        config = config_of(folders, kind, gradient_checkpointing=checkpointing)
        extrapolated = shapes_of(config, 1)
        with monkeypatch.context() as patch:
            patch.setattr(shapes, "_LONGEST_LIST", 100)
            patch.setattr(shapes, "_shapes", shapes._shapes.__wrapped__)  # no stored result
            whole = shapes_of(config, 1)
        assert extrapolated.training == pytest.approx(whole.training, rel=tolerance)
        assert extrapolated.forward == pytest.approx(whole.forward, rel=tolerance)


def test_checkpointing_offloading_and_more_references_change_activations(folders: dict[str, Path]) -> None:
    plain = shapes_of(config_of(folders, "flux-kontext"), 1)
    checkpointed = shapes_of(config_of(folders, "flux-kontext", gradient_checkpointing=True), 1)
    assert checkpointed.training < 0.7 * plain.training and checkpointed.forward == plain.forward
    changes = {"gradient_checkpointing": True, "offload_activations": True}
    offloaded = shapes_of(config_of(folders, "flux-kontext", **changes), 1)
    assert checkpointed.waiting == plain.waiting == 0 < offloaded.waiting
    assert offloaded.training + offloaded.waiting == checkpointed.training and offloaded.forward == plain.forward
    assert shapes_of(config_of(folders, "flux-kontext"), 2).training > 1.1 * plain.training


def test_living_tensors_are_counted() -> None:
    given = torch.empty(1000, device="meta")

    def compute() -> torch.Tensor:
        one = given + 1  # 4000
        two = one * 2  # 8000
        del one
        three = two + two  # 8000
        return three[:10].view(2, 5)  # a view holds no more

    assert measure(compute) == (8000, 0)
    assert measure(lambda: given.add_(1).view(10, 100)) == (0, 0)
    wide = torch.empty(1, 2, 5000, 8, device="meta")
    peak, flops = measure(lambda: torch.nn.functional.scaled_dot_product_attention(wide, wide, wide))
    assert peak < 1e6 and flops == 2 * (2 * 2 * 5000 * 5000 * 8)


def test_quantised_weights_have_the_sizes_of_their_formats() -> None:
    model = Model(1000, linear=800, rows=10)
    assert model.bytes(2) == 2000
    assert model.bytes(2, "int8") == 200 * 2 + 800 + 10 * 2
    assert model.bytes(2, "nf4") == 200 * 2 + int(800 * (0.5 + 1 / 64 + 1 / 4096))
