"""FLUX.1 Kontext's references and noise levels against its pipeline, and what every policy refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import proofs
import pytest
import tiny
import torch
from diffusers.pipelines.flux import pipeline_flux_kontext as kontext
from proofs import FILE, PROMPT, STEPS, apart, euler, noise, refused, stock
from safetensors.torch import load_file, save_file
from tiny_models import Model

from customized_grpo.config import LoraConfig

kontext_model = pytest.mark.parametrize("model", ["flux-kontext"], indirect=True)


# Sampling


@kontext_model
def test_noise_levels_that_depend_on_the_size_are_the_pipelines(model: Model, tmp_path: Path) -> None:
    folder = tiny.save_flux_kontext(tmp_path, dynamic_shifting=True)
    static, policy = proofs.kontext(model.folder).sigmas(STEPS), proofs.kontext(folder)
    assert static.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    dynamic = policy.sigmas(STEPS)
    assert dynamic.dtype == torch.float32 and dynamic[0] == 1 and dynamic[-1] == 0
    assert (static - dynamic)[1:-1].abs().min() > 0.05
    with pytest.raises(ValueError, match="steps"):
        policy.sigmas(0)
    sampled = euler(policy, noise(policy), model.encode(policy))
    assert apart(sampled, model.draw(stock(folder), noise(policy))) < 1e-4


@kontext_model
def test_without_references_it_is_the_pipeline_without_image(model: Model) -> None:
    policy = model.policy()
    sampled = euler(policy, noise(policy), policy.encode(PROMPT, []))
    assert apart(sampled, model.draw(model.stock(policy), noise(policy), image=None)) < 1e-4


@kontext_model
def test_references_are_resized_as_the_pipeline_does(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(24, 16), (16, 16), (20, 36)]  # (width, height), and no multiples of a token
    monkeypatch.setattr(kontext, "PREFERRED_KONTEXT_RESOLUTIONS", sizes)
    policy, image = model.policy(reference_sizes=None), proofs.random_image(90, 50, 0)
    conditions = policy.encode(PROMPT, [image])
    assert conditions.rows["reference_1"].shape[1:3] == (4, 2)
    expected = model.draw(model.stock(policy), noise(policy), image=image, _auto_resize=True)
    assert apart(euler(policy, noise(policy), conditions), expected) < 1e-4


def test_several_references_have_ids_and_tokens_of_their_own(folder: Path) -> None:
    """The pipeline takes one only: held against the transformer given tokens and ids by hand."""
    policy = proofs.kontext(folder, reference_sizes=[(16, 24), (24, 16)])
    images = [proofs.random_image(16, 24, 1), proofs.random_image(24, 16, 2)]
    x, sigma = noise(policy), torch.tensor([0.7])
    found = policy.velocity(x, sigma, policy.encode(PROMPT, images))

    pipeline = stock(folder)
    tokens, ids = [x], [pipeline._prepare_latent_image_ids(1, 4, 3, "cpu", torch.float32)]
    for k, image in enumerate(images, 1):
        pixels = pipeline.image_processor.preprocess(image)
        _, packed, _, image_ids = pipeline.prepare_latents(pixels, 1, 4, 32, 24, torch.float32, "cpu", None, x)
        image_ids[:, 0] = k
        tokens.append(packed)
        ids.append(image_ids)
    assert apart(found, proofs.flux_velocity(pipeline, tokens, torch.cat(ids), 0.7)) < 1e-4
    assert apart(found, policy.velocity(x, sigma, policy.encode(PROMPT, images[::-1]))) > 1e-4


# Training


def test_the_lora_starts_the_same_everywhere_and_leaves_the_random_state(folder: Path) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = proofs.kontext(folder).trainable()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = proofs.kontext(folder).trainable()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(parameter.std() > 0 for name, parameter in first.items() if "lora_A" in name)


def test_weights_stored_in_half_precision_are_loaded_in_full(folder: Path, tmp_path: Path) -> None:
    stock(folder).to(torch.float16).save_pretrained(tmp_path)
    policy = proofs.kontext(tmp_path)
    parts = [p for p in policy._pipeline.components.values() if isinstance(p, torch.nn.Module)]
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}


# Bad input


def test_another_models_weights_are_refused_and_change_nothing(folder: Path, tmp_path: Path) -> None:
    policy = proofs.kontext(folder)
    before = {name: parameter.clone() for name, parameter in policy.trainable().items()}
    deeper = tiny.save_flux_kontext(tmp_path / "deep", layers=2)
    wider = tiny.save_flux_kontext(tmp_path / "wide", width=48)
    cases: list[tuple[Path, LoraConfig, tuple[str, ...]]] = [
        (wider, proofs.LORA, ("another model", "policy.path")),
        (deeper, proofs.LORA, ("policy lacks transformer.",)),
        (folder, LoraConfig(rank=2, alpha=6), ("policy.lora.rank",)),
        (folder, LoraConfig(rank=4, alpha=6, targets=["to_q"]), ("file lacks", "policy.lora.targets")),
    ]
    for number, (path, lora, words) in enumerate(cases):
        proofs.kontext(path, lora=lora).save(tmp_path / str(number))
        refused(lambda number=number: policy.load(tmp_path / str(number)), FILE, *words)
    assert all(torch.equal(parameter, before[name]) for name, parameter in policy.trainable().items())
    full = proofs.kontext(folder, lora=None)
    refused(lambda: full.load(tmp_path / "0"), "no saved transformer")
    refused(lambda: full.load(wider), "another model", "policy.path")
    full.save(tmp_path / "full")
    weights = tmp_path / "full" / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    del state["proj_out.bias"]
    save_file(state, weights, metadata={"format": "pt"})
    refused(lambda: full.load(tmp_path / "full"), "lacks proj_out.bias")


def test_pickled_weights_of_a_text_encoder_are_not_read(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    weights = copy / "text_encoder" / "model.safetensors"
    torch.save(torch.nn.Linear(1, 1).state_dict(), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    refused(lambda: proofs.kontext(copy), "policy.path", "safetensors")


def test_lora_targets_that_are_not_there_are_refused(folder: Path) -> None:
    for targets, word in ((["to_q", "to_z"], "'to_z'"), ([], "empty"), (["norm_q"], "'norm_q'")):
        lora = LoraConfig(rank=4, targets=targets)
        refused(lambda lora=lora: proofs.kontext(folder, lora=lora), "policy.lora.targets", word)
    assert len(proofs.kontext(folder, lora=LoraConfig(rank=4, targets=["to_q"])).trainable()) == 4
