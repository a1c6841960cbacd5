"""Memory and work of a run by formulas, from its configuration alone.

Memory on the device is the largest of four phases of an iteration:

    always     weights of transformer, reward models, and of text encoders and VAE unless `offload`; the LoRA, Adam's
               state, cached conditioning
    encoding   + text encoders and VAE if `offload`, in place of transformer and LoRA; activations of the VAE
    sampling   + latents of all images, those of one step of a batch, activations of a forward pass
    scoring    + latents, VAE if `offload`, all images, activations of the VAE on one batch
    training   + latents, transitions of one update, gradients, activations of a forward and backward pass

On an accelerator `_OVERHEAD_SHARE` and `_OVERHEAD_BYTES` are added for fragmentation, driver and kernels, and
activations of reward models: a rule of thumb, and the only one here.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from pydantic import ValidationError

from customized_grpo.config import BALANCES, OBJECTIVES, Config, PolicyConfig
from customized_grpo.config.presets import objective_defaults
from customized_grpo.planning.models import option, reward_models, scorer_path
from customized_grpo.planning.shapes import Shapes, count, shapes_of
from customized_grpo.trainer.conditioning import conditions_cached
from customized_grpo.trainer.credit import reward_name
from customized_grpo.trainer.grpo import trained_count
from customized_grpo.trainer.windows import stochastic_steps
from customized_grpo.utils.hub import ModelError, local_path, resolve
from customized_grpo.utils.outlines import outline_reward

_FLOAT32 = 4
_OVERHEAD_SHARE, _OVERHEAD_BYTES = 0.05, 1_000_000_000


@dataclass(frozen=True)
class Download:
    """Files of a Hub model that are not in the local cache, and about how many bytes (None: unknown)."""

    path: str
    files: str
    bytes: int | None


@dataclass(frozen=True)
class Plan:
    """Needs of a run, for each of `processes`.

    Attributes:
        processes: Number of processes.
        parameters: Number of parameters by model.
        trainable: Number of trained parameters.
        device: Bytes on the device by phase and part.
        host: Bytes in host memory by part, with an accelerator.
        needed: Bytes that the device must have, with overhead.
        images: Images per iteration, over all processes.
        sampling_evaluations: Model evaluations per iteration to sample them, at most.
        training_evaluations: Model evaluations, forward and backward, per iteration.
        reference_evaluations: Model evaluations forward per iteration to train, by the moving average and the untuned
            model.
        flops: Floating-point operations of the transformer per iteration, over all processes.
        downloads: Files to download.
        uncounted: Models whose memory is unknown, in words.
    """

    processes: int
    parameters: dict[str, int]
    trainable: int
    device: dict[str, dict[str, int]]
    host: dict[str, int]
    needed: int
    images: int
    sampling_evaluations: int
    training_evaluations: int
    reference_evaluations: int
    flops: int
    downloads: list[Download]
    uncounted: list[str]

    @property
    def peak_phase(self) -> str:
        """Phase that needs the most memory on the device."""
        return max(self.device, key=lambda phase: sum(self.device[phase].values()))


@dataclass(frozen=True)
class _Scorer:
    """A reward model: its path, parameters and bytes per parameter, and whether it is on the policy's device."""

    path: str
    parameters: int
    width: int
    beside_policy: bool


def make_plan(config: Config, *, processes: int = 1, references: int = 1, accelerator: bool = True) -> Plan:
    """Plan a run for pairs with that number of references. No weights are loaded or downloaded.

    Raises:
        ConfigError, ModelError: The shapes of a model cannot be found.
    """
    policy, rollout, train = config.policy, config.rollout, config.train
    shapes = shapes_of(policy, references)
    scorers, uncounted = _scorers(config)
    if config.method.objective == "grpo":
        trained = trained_count(len(stochastic_steps(rollout, config.seed, 0)), train.trained_fraction)
    else:
        trained = config.forward.levels
    weights = _weights(config, shapes, scorers)
    device = _device_memory(config, shapes, weights, trained, -(-rollout.pairs // processes))
    peak = max(sum(parts.values()) for parts in device.values())
    images, passes = rollout.pairs * rollout.group_size, 1 if policy.true_cfg == 1 else 2
    sampled = images + _validated(config)
    updated = rollout.pairs * math.ceil(train.image_fraction * rollout.group_size)
    sampling, training = int(sampled * rollout.steps) * passes, updated * trained * passes
    references = training * (int(_has_old(config)) + int(train.kl_weight > 0))
    models = {"transformer": shapes.transformer, **shapes.text_encoders, "vae": shapes.vae}
    return Plan(
        processes=processes,
        parameters={
            **{name: model.parameters for name, model in models.items()},
            **{f"{name}: {scorer.path}": scorer.parameters for name, scorer in scorers.items()},
        },
        trainable=shapes.trained,
        device=device,
        host=_host_memory(config, shapes, weights) if accelerator else {},
        needed=peak + int(peak * _OVERHEAD_SHARE) + _OVERHEAD_BYTES if accelerator else peak,
        images=images,
        sampling_evaluations=sampling,
        training_evaluations=training,
        reference_evaluations=references,
        # `velocity` of one image makes all passes of guidance.
        flops=((sampling + references) * shapes.forward_flops + training * shapes.training_flops) // passes,
        downloads=list(_downloads(policy, shapes, scorers)),
        uncounted=uncounted,
    )


def objective_plans(config: Config, **arguments: Any) -> dict[str, Plan]:
    """Return the plans of all built-in objectives that go with the other settings, with their own defaults."""
    plans = {}
    for objective in OBJECTIVES:
        values = config.model_dump(mode="json")
        values["method"]["objective"] = objective
        if objective != config.method.objective:
            for key, value in objective_defaults({"objective": objective}).items():
                section, _, name = key.partition(".")
                values[section][name] = value
        with suppress(ValidationError):
            plans[objective] = make_plan(Config.model_validate(values), **arguments)
    return plans


def _has_old(config: Config) -> bool:
    """Return whether a moving average of the policy is evaluated in training."""
    return config.method.objective != "grpo" and (config.forward.pull > 0 or config.method.objective != "awm")


def _validated(config: Config) -> float:
    """Return the images per iteration that are only generated to measure gains, by both models, on average."""
    if config.method.weighting not in BALANCES:
        return 0.0
    validation, iterations = config.validation, config.train.iterations
    each = min(validation.per_iteration, validation.images)
    return each + min(validation.images, each * iterations) / iterations


def _weights(config: Config, shapes: Shapes, scorers: dict[str, _Scorer]) -> dict[str, int]:
    """Return bytes of weights, and of what training adds to them, by part."""
    policy, width = config.policy, _width(config.policy.dtype)
    # The untuned model is stored where it cannot be had by switching a LoRA off.
    stored = policy.lora is None or (policy.adapter is not None and policy.adapter_as == "start")
    encoders = (model.bytes(width, policy.quantise_text_encoders) for model in shapes.text_encoders.values())
    return {
        "transformer": shapes.transformer.bytes(width, policy.quantise),
        "LoRA": 0 if policy.lora is None else shapes.trained_bytes,
        # Two moments of each weight in its own precision, a float32 count of steps for each tensor.
        "optimiser state": 2 * shapes.trained_bytes + _FLOAT32 * shapes.trained_tensors,
        # The old policy's average, and a copy of the weights that it replaces for a moment.
        "moving average": shapes.trained_bytes * (int(config.train.ema > 0) + 2 * int(_has_old(config))),
        "rewards": sum(one.parameters * one.width for one in scorers.values() if one.beside_policy),
        "text encoders": sum(encoders),
        "VAE": shapes.vae.bytes(width),
        "untuned weights": shapes.trained_bytes if stored else 0,
    }


def _device_memory(
    config: Config, shapes: Shapes, weights: dict[str, int], trained: int, pairs: int
) -> dict[str, dict[str, int]]:
    """Return bytes on the device by phase and part, with `trained` steps per image and `pairs` groups per process."""
    policy, rollout, train = config.policy, config.rollout, config.train
    grpo = config.method.objective == "grpo"
    images, means = pairs * rollout.group_size, int(train.ratio == "guard" and grpo)
    stochastic = len(stochastic_steps(rollout, config.seed, 0))
    # Sizes that adapt to free memory go down to one item if they must.
    batch = min(1 if rollout.batch_size == "auto" else rollout.batch_size, images)
    training_batch = 1 if train.batch_size == "auto" else train.batch_size
    # Cached conditioning, and at most that of each batch's pairs joined.
    joined = pairs - (-images // batch) if pairs > 1 else 0
    cached = min(conditions_cached(config), pairs * train.iterations)
    # Latents before and after each trained step (neighbours share them), means if needed, log-densities; clean latents.
    states = min(2 * trained, stochastic + 1) + means * trained if grpo else 0
    latents = images * _FLOAT32 * ((states + 1) * shapes.latent + (trained if grpo else 0))
    # Of each transition two latents, the mean if needed, and five numbers.
    transitions = -(-images // min(train.updates, images)) * trained if grpo else 0
    # Of each noised image of a micro-batch its latents, target and old velocity.
    noised = 0 if grpo else 3 * shapes.latent * _FLOAT32
    dequantised = shapes.largest_linear * _width(policy.dtype) if policy.quantise else 0

    elsewhere = {"text encoders": 0, "VAE": 0} if policy.offload else {}
    always = {**weights, **elsewhere, "conditions": (cached + joined) * shapes.condition, "untuned weights": 0}
    loaded = {name: weights[name] for name in ("text encoders", "VAE")}
    away = {"transformer": 0, "LoRA": 0} if policy.offload else {}
    kept = {**always, "latents of the rollout": latents}
    phases = {
        "encoding": {**always, **loaded, **away, "activations": shapes.encode},
        "sampling": {
            **kept,
            # Latents before and after a step, velocity and mean; and conditioning.
            "latents being sampled": batch * (4 * shapes.latent * _FLOAT32 + shapes.condition),
            "activations": batch * shapes.forward + dequantised,
        },
        "scoring": {
            **kept,
            "VAE": weights["VAE"],
            "images": 2 * images * 3 * prod(policy.largest_size) * _FLOAT32,
            "activations": batch * shapes.decode,
        },
        "training": {
            **kept,
            "transitions": transitions * _FLOAT32 * ((2 + means) * shapes.latent + 5),
            "gradients": shapes.trained_bytes,
            "untuned weights": weights["untuned weights"],  # loaded for the KL divergence
            "activations": training_batch * (shapes.training + shapes.condition + noised) + dequantised,
        },
    }
    return {name: {part: size for part, size in parts.items() if size} for name, parts in phases.items()}


def _host_memory(config: Config, shapes: Shapes, weights: dict[str, int]) -> dict[str, int]:
    """Return bytes in host memory of one process with an accelerator, by part; models are loaded there first."""
    policy, train = config.policy, config.train
    encoders = 0 if policy.offload and policy.conditions is not None else weights["text encoders"]
    offloaded = int(policy.offload)
    parts = {
        "while loading": shapes.transformer.bytes(_width(policy.dtype)) + weights["VAE"] + encoders,
        "text encoders": offloaded * encoders,
        "VAE": offloaded * weights["VAE"],
        "transformer, while encoding": offloaded * weights["transformer"],
        "untuned weights": weights["untuned weights"],
        "activations": (1 if train.batch_size == "auto" else train.batch_size) * shapes.waiting,
    }
    return {part: size for part, size in parts.items() if size}


def _width(dtype: str) -> int:
    found: torch.dtype = getattr(torch, dtype)
    return found.itemsize


def _scorers(config: Config) -> tuple[dict[str, _Scorer], list[str]]:
    """Return the reward models and monitors with a model on this machine by name, and the uncounted ones in words."""
    scorers, uncounted = {}, []
    for reward in (*config.rewards, *config.evaluation.monitors):
        name = reward_name(reward)
        if ":" in reward.kind:
            uncounted.append(f"the reward {name!r}, code of your own")
        elif (path := scorer_path(reward)) is not None:
            base, dtype = option(reward, "base") or path, option(reward, "dtype") or "float32"
            beside = reward.device is None or reward.device == config.policy.device
            scorers[name] = _Scorer(path, _parameters(base, reward.kind == "vlm-local"), _width(dtype), beside)
            for model in reward_models(reward, masked=config.data.path == "world"):
                if model.part in ("segmenter", "detector"):
                    try:
                        scorers[f"{model.part} of {name}"] = _Scorer(
                            model.path, _parameters(model.path), _FLOAT32, beside
                        )
                    except ModelError:
                        uncounted.append(f"{model.path}, the {model.part} of the reward {name!r}")
        if ":" in str(reward.options.get("segmenter")):
            uncounted.append(f"{reward.options['segmenter']}, the segmenter of the reward {name!r}")
    return scorers, uncounted


@lru_cache(maxsize=32)
def _parameters(path: str, answers: bool = False) -> int:
    return count(outline_reward(path, answers=answers)).parameters


def _downloads(policy: PolicyConfig, shapes: Shapes, scorers: dict[str, _Scorer]) -> Iterator[Download]:
    """Yield weights that the Hub's local cache lacks, of the pipeline and of reward models."""
    source = resolve(policy.path)
    if isinstance(source, str):
        parts = {"transformer": shapes.transformer, **shapes.text_encoders, "vae": shapes.vae}
        # All are published in bfloat16, 2 bytes a parameter, whatever policy.dtype converts them to.
        for part, model in parts.items():
            if not _is_cached(source, policy.revision, f"{part}/*.safetensors"):
                yield Download(source, f"{part}/*.safetensors", 2 * model.parameters)
    for scorer in scorers.values():
        if isinstance(resolve(scorer.path), str) and not _is_cached(scorer.path, None, "*.safetensors"):
            yield Download(scorer.path, "*.safetensors", scorer.width * scorer.parameters)
    if policy.adapter is not None and not local_path(policy.adapter).exists():
        yield Download(policy.adapter, "to be put there by hand", None)


def _is_cached(repository: str, revision: str | None, pattern: str) -> bool:
    try:
        folder = snapshot_download(repository, revision=revision, local_files_only=True)
    except Exception:  # the Hub's client has several for a model that is not cached
        return False
    return any(Path(folder).glob(pattern))
