"""Base class of policies that are made of a diffusers pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.loaders import FluxLoraLoaderMixin
from PIL import Image, ImageOps
from torch import Tensor, nn

from customized_grpo.config import PolicyConfig
from customized_grpo.config.loading import make_section
from customized_grpo.policies.adapters import adapter_file, fuse
from customized_grpo.policies.backends import context_of, resolve_backend, use_backend
from customized_grpo.policies.checkpointing import checkpointing
from customized_grpo.policies.compute import Placement, keep_freed_memory, takes_channels_last, use_channels_last
from customized_grpo.policies.conditions import ConditionsFolder, conditions_folder
from customized_grpo.policies.hooks import Grid, PipelineHooks, nearest_size
from customized_grpo.policies.loading import adopt_pipeline, load_part, load_pipeline, load_transformer
from customized_grpo.policies.sharding import sum_over_processes
from customized_grpo.policies.tuning import FullTuning, LoraTuning
from customized_grpo.protocols import Conditions
from customized_grpo.utils.devices import device_of
from customized_grpo.utils.hub import ModelError
from customized_grpo.utils.prompts import silence_truncation

REFERENCE = "reference_{}"
"""Name in `Conditions.rows` of the tokens of the k-th reference, counted from 1."""
NEGATIVE = "negative_"
"""Prefix in `Conditions.rows` of embeddings of the negative prompt."""


class PipelinePolicy(PipelineHooks):
    """Base class of policies made of a diffusers pipeline whose transformer takes image and references as tokens.

    A subclass declares `pipelines` and `lora_targets` and defines `encode_prompt`, `encode_reference`,
    `decode_latents` and `transformer_inputs`, and, where needed, `position_ids` and `shift`. A model whose tokens, time
    or prompt embeddings differ from FLUX.1's also defines `token_pixels`, `token_channels`, `timestep`, `transform` or
    `prompt_shapes`. It then has all features of built-in policies: LoRA or full training, quantisation, offloading,
    cached conditioning, FSDP, `cgrpo plan`.

    Latents are the pipeline's packed tokens, float32 (B, tokens, channels), of images of `config.height` x
    `config.width`, floored to whole tokens as the pipelines do. With several `config.sizes`, each pair has the size
    with the aspect ratio nearest to its first reference's, and latents are on their grid, (B, rows, columns,
    channels). Weights are converted to `config.dtype`; those of a LoRA are float32. With gradients and without, a
    velocity has the same bits.

    Args:
        config: Model, size, precision and what to train.
        pipeline: A diffusers pipeline in memory to use instead of the one at `config.path`. Its models are changed in
            place. The path is read only if weights are needed again.

    Raises:
        ModelError: The path holds no such pipeline in safetensors, a size is less than one token, LoRA targets do not
            exist, or the attention backend is not available.
    """

    attention_backend: str
    """Name of the backend that computes the transformer's attention, see `backends.resolve_backend`."""

    def __init__(self, config: PolicyConfig, pipeline: Any = None) -> None:
        if config.device == "meta":  # weights without values take no adapter
            config = config.model_copy(update={"adapter": None})
        if config.adapter is not None:
            adapter_file(config.adapter)  # before the large model is loaded
        self._config = config
        self._dtype: torch.dtype = getattr(torch, config.dtype)
        self._device = device_of(config.device)
        self.attention_backend = resolve_backend(config.attention, self._device, self._dtype)
        folder = conditions_folder(config)
        if pipeline is None:
            self._pipeline = load_pipeline(config, *self.pipelines, prepare=self.preparation())
        else:
            self._pipeline = adopt_pipeline(config, pipeline, *self.pipelines, prepare=self.preparation())
        silence_truncation(type(self._pipeline).__module__)  # `prompt_tokens` counts those prompts once, in advance
        self._transformer = self._pipeline.transformer
        self._class = type(self._transformer)  # before it is sharded, which changes the class
        kernels = config.kernels == "auto"
        self._tuning: LoraTuning | FullTuning
        if config.lora is not None:
            # All pipelines write the same format; some of diffusers' have no such method.
            write = getattr(type(self._pipeline), "save_lora_weights", FluxLoraLoaderMixin.save_lora_weights)
            targets = self.lora_targets, self.lora_exclude
            self._tuning = LoraTuning(self._transformer, config.lora, *targets, write, kernels=kernels)
            if config.adapter is not None and config.adapter_as == "start":
                self._tuning.start_from(self.adapter_terms(self._transformer, config.adapter))
        else:
            again = partial(load_transformer, self._class, config, self.preparation())
            self._tuning = FullTuning(self._transformer, again)
        use_backend(self._transformer, self.attention_backend)
        self._inside = context_of(self.attention_backend)
        if self._device.type == "cpu":
            keep_freed_memory()
        if config.gradient_checkpointing:
            self._transformer.enable_gradient_checkpointing(
                checkpointing(self._device, on_host=config.offload_activations, inside=self._inside, one_node=kernels)
            )
        if config.compile:
            self._transformer.compile_repeated_blocks()
        if takes_channels_last(self._device, self._dtype):
            use_channels_last(self._pipeline.vae)
        self._transformer.to(self._device)
        self._placement = Placement(self._pipeline, config, self._device)
        self._placement.bring_transformer()
        # After loading: the keys depend on the model's files.
        self._stored = None if folder is None else ConditionsFolder(folder, config, self._device)
        self._ids: dict[tuple[Grid, ...], Tensor] = {}
        self._grid = self._tokens_of("policy.height and policy.width", config.height, config.width)
        self._grids = {size: self._tokens_of("policy.sizes", *size) for size in config.sizes or ()}
        for size in config.reference_sizes or ():
            self._tokens_of("policy.reference_sizes", *size)

    @classmethod
    def from_pretrained(
        cls, path: str, *, lora_rank: int | None = None, pipeline: Any = None, **settings: Any
    ) -> PipelinePolicy:
        """Load a diffusers pipeline as a policy.

        Args:
            path: Hub id or folder of the pipeline, such as "black-forest-labs/FLUX.1-Kontext-dev".
            lora_rank: LoRA rank, short for `lora=LoraConfig(rank=...)`; that of the model's preset if not given.
            pipeline: A pipeline in memory to use instead of the one at `path`; its models are changed in place.
            **settings: Other fields of `PolicyConfig`, such as `dtype`, `height` or `kind`. Fields that are not given
                have the values of the model's preset. The kind is found by the pipeline's class.

        Returns:
            A policy of this class; of the kind for the pipeline if this is the base class.

        Raises:
            ModelError: There is no such pipeline in safetensors, or no policy for it.
            ConfigError: A setting is unknown or not valid.
        """
        from customized_grpo.policies import class_of, kind_of, name_of  # which imports this module

        base = cls is PipelinePolicy
        if lora_rank is not None:
            settings["lora"] = {"rank": lora_rank}
        if "kind" not in settings:
            settings["kind"] = kind_of(path, settings.get("revision")) if base else name_of(cls)
        config = make_section(PolicyConfig, "policy", {"path": path, **settings})
        return (class_of(config.kind) if base else cls)(config, pipeline)

    @property
    def config(self) -> PolicyConfig:
        """The settings that the policy was made with."""
        return self._config

    @property
    def device(self) -> torch.device:
        """Device of the transformer while it computes."""
        return self._device

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(tokens, channels), or with several sizes (rows, columns, channels) of the largest."""
        if self._has_sizes:
            return *max(self._grids.values(), key=math.prod), self.token_channels
        return math.prod(self._grid), self.token_channels

    @property
    def _has_sizes(self) -> bool:
        return len(self._grids) > 1

    def encode(self, prompt: str, references: Sequence[Image.Image]) -> Conditions:
        """Encode a pair to one row of conditioning, in the model's precision and on its device.

        Raises:
            ModelError: The model does not take this prompt or these references.
        """
        images = [image.convert("RGB") for image in references]
        if self._stored is None:
            conditions = self._encode(prompt, images)
        else:
            conditions = self._stored.get(prompt, images, lambda: self._encode(prompt, images))
        if not self._has_sizes:
            return conditions
        size = nearest_size(images[0].height, images[0].width, list(self._grids)) if images else None
        grid = self._grid if size is None else self._grids[size]
        return replace(conditions, latent_shape=(*grid, self.latent_shape[-1]))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode clean latents (B, *latent shape) to images float32 (B, 3, H, W) in [0, 1]."""
        self._placement.bring(self._pipeline.vae)
        return self.decode_latents(latents.flatten(1, -2), self._grid_of(latents))

    def sigmas(self, steps: int, latent_shape: tuple[int, ...] | None = None) -> Tensor:
        """Return the scheduler's noise levels (steps + 1,) on the CPU, shifted as the pipeline does for the size.

        Raises:
            ValueError: `steps` is below 1, or is 1 with a scheduler that has a shift_terminal.
        """
        scheduler = self._pipeline.scheduler
        least = 2 if scheduler.config.get("shift_terminal") else 1
        if steps < least:
            raise ValueError(
                f"rollout.steps, evaluation.steps or --steps is {steps}; this model's scheduler needs {least} or more"
            )
        tokens = math.prod((latent_shape or self.latent_shape)[:-1])
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=self.shift(steps, tokens))
        return scheduler.sigmas.float().cpu().clone()

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """Compute the velocity float32 of latents (B, *latent shape), in their shape, at noise levels (B,).

        It carries a gradient to `trainable()` where gradients are enabled, except inside `reference()`.

        Raises:
            ValueError: Shapes disagree.
        """
        expected = conditions.latent_shape or self.latent_shape
        if latents.shape[1:] != expected or not len(latents) == len(sigma) == len(conditions):
            raise ValueError(
                f"latents {tuple(latents.shape)}, sigma {tuple(sigma.shape)} and {len(conditions)} "
                f"conditions do not fit; latents are (B, {', '.join(map(str, expected))})"
            )
        if self._config.offload:
            self._placement.bring_transformer()
        rows = {name: row.to(self._device, self._dtype) for name, row in conditions.rows.items()}
        count = sum(name.startswith(REFERENCE.format("")) for name in rows)
        references = [rows[REFERENCE.format(k)] for k in range(1, count + 1)]
        grids = (self._grid_of(latents), *[(r.shape[1], r.shape[2]) for r in references])
        packed = latents.flatten(1, -2)
        tokens = [packed.to(self._device, self._dtype), *[r.flatten(1, 2) for r in references]]
        scale = self._pipeline.scheduler.config.num_train_timesteps
        timestep = self.timestep(sigma.to(self._device, torch.float32) * scale)

        def compute(rows: dict[str, Tensor]) -> Tensor:
            with self._inside():
                output = self.transform(tokens, timestep, self.transformer_inputs(rows, grids))
            return output[:, : packed.shape[1]].float().reshape(latents.shape)

        if self._config.true_cfg == 1:
            return compute(rows)
        negative = {name.removeprefix(NEGATIVE): row for name, row in rows.items() if name.startswith(NEGATIVE)}
        return self.guided(compute(rows), compute(negative))

    def sampling(self) -> AbstractContextManager[None]:
        """Return a context in which weights do not change: `velocity` may reuse what does not depend on the step."""
        return nullcontext()

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the LoRA's parameters, or all of the transformer's, by their names in it; on the device."""
        self._transformer.to(self._device)  # so that an optimizer's state is made, or loaded, there
        return self._tuning.trainable()

    def shard(self, fully_shard: Callable[[nn.Module], object]) -> None:
        """Shard the transformer's weights over processes by `fully_shard` (FSDP2).

        From then on all processes call `velocity`, `reference`, `save` and `load` together.

        Raises:
            ModelError: A setting is not supported with shards.
        """
        for name in ("offload", "quantise", "compile"):
            if getattr(self._config, name):
                raise ModelError(f"policy.{name}: is not supported with FSDP; omit it, or launch without FSDP")
        fully_shard(self._transformer)
        sum_over_processes(self._transformer)

    def reference(self) -> AbstractContextManager[None]:
        """Return a context in which `velocity` is that of the untuned model, without gradients."""
        return self._tuning.reference()

    def save(self, folder: Path) -> None:
        """Write pytorch_lora_weights.safetensors for `load_lora_weights`; without a LoRA, the folder "transformer"."""
        self._tuning.save(folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, bit for bit, into the parameters of `trainable()`.

        Raises:
            ModelError: The file is missing, damaged, or of another model; nothing is changed then.
        """
        self._tuning.load(folder)

    def save_merged(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the pipeline with merged weights, in safetensors and `dtype`; the policy cannot be used afterwards."""
        self._tuning.merge(dtype)
        self._pipeline.to(dtype)
        self._pipeline.save_pretrained(folder, safe_serialization=True)

    def preparation(self) -> Callable[[nn.Module], None] | None:
        """Return a function that changes weights before they are quantised or adapted: it fuses `config.adapter`."""
        adapter = self._config.adapter
        if adapter is None or self._config.adapter_as == "start":
            return None
        return lambda transformer: fuse(transformer, self.adapter_terms(transformer, adapter))

    @torch.no_grad()
    def _encode(self, prompt: str, references: Sequence[Image.Image]) -> Conditions:
        for name in self._placement.encoders:
            if getattr(self._pipeline, name) is None:
                setattr(self._pipeline, name, load_part(self._config, self._pipeline, name))
        self._placement.bring_encoders()
        rows = self.encode_prompt(prompt, references)
        if self._config.true_cfg != 1:
            negative = self.encode_prompt(self._config.negative_prompt, references)
            rows |= {f"{NEGATIVE}{name}": row for name, row in negative.items()}
        for k, image in enumerate(references, 1):
            rows[REFERENCE.format(k)] = self.encode_reference(image, len(references))
        return Conditions(rows)

    def _grid_of(self, latents: Tensor) -> Grid:
        """Return rows and columns of latents: their own if they are on a grid."""
        return (latents.shape[1], latents.shape[2]) if latents.ndim == 4 else self._grid

    def _image_ids(self, grids: tuple[Grid, ...]) -> Tensor:
        """Return position ids of image and references on the model's device, made once for the same grids."""
        if grids not in self._ids:
            self._ids[grids] = self.position_ids(grids).to(self._device)
        return self._ids[grids]

    def _cropped(self, image: Image.Image, height: int, width: int) -> Image.Image:
        """Scale a reference and crop it about its centre, if there are several `reference_sizes`."""
        if len(self._config.reference_sizes or ()) < 2:
            return image
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)

    def _tokens_of(self, key: str, height: int, width: int) -> Grid:
        """Return rows and columns of tokens of an image; `key` is the setting to name if there are none."""
        side = self.token_pixels
        if height < side or width < side:
            raise ModelError(
                f"{key}: {height}x{width} is less than one token of this model; give at least {side}x{side}"
            )
        return height // side, width // side
