"""What the policies made of a diffusers pipeline share; each model's own file holds the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from customized_grpo.config import PolicyConfig
from customized_grpo.policies.backends import resolve_backend
from customized_grpo.policies.compute import Placement, prepare_transformer, takes_channels_last, use_channels_last
from customized_grpo.policies.conditions import ConditionsFolder, conditions_folder
from customized_grpo.policies.loading import adopt_pipeline, load_part, load_pipeline, load_transformer
from customized_grpo.policies.processor import OnProcessor
from customized_grpo.policies.sharding import sum_over_processes
from customized_grpo.policies.tuning import FullTuning, LoraTuning, Tuning
from customized_grpo.protocols import Conditions
from customized_grpo.utils.devices import device_of
from customized_grpo.utils.hub import ModelError

REFERENCE = "reference_{}"
"""Name in Conditions.rows of the k-th reference's tokens, from 1."""
NEGATIVE = "negative_"
"""Before the names in Conditions.rows of what true classifier-free guidance reads in place of the prompt."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""The linear layers of joint attention, by diffusers' names: targets of a LoRA in every model here."""
PATCH = 2
"""The pipelines' patches: 2x2 latents make one token."""

Grid = tuple[int, int]


class PipelinePolicy(ABC):
    """Base class of policies made of a diffusers pipeline whose transformer takes image and references as tokens.

    A subclass declares `pipelines` and `lora_targets` and defines `encode_prompt`, `encode_reference`,
    `decode_latents`, `transformer_inputs` and `shift`, and `position_ids` where its transformer takes them. It then has
    all that built-in policies have: LoRA or full training, precisions and quantisation, attention backends,
    checkpointing, offloading, cached conditioning, classifier-free guidance, FSDP, `cgrpo plan` and `cgrpo merge`.

    Latents are the pipeline's packed tokens, float32 (B, tokens, channels), of images of `config.height` x
    `config.width`, floored to whole tokens as the pipelines do. Weights are converted to `config.dtype`; those of a
    LoRA are float32. With gradients and without, a velocity has the same bits.

    Args:
        config: Model, size, precision and what to train.
        pipeline: A diffusers pipeline in memory to use instead of the one at `config.path`. Its models are changed in
            place, so it belongs to one policy. The path is read only where weights are wanted again: all of the
            transformer's for KL without a LoRA, text encoders dropped to save memory.

    Raises:
        ModelError: the path holds no such pipeline in safetensors, a size is less than one token, LoRA targets do not
            exist, or the attention backend is not available.
    """

    _on_processor: Callable[[bool], AbstractContextManager[object]] = OnProcessor
    """Inside what the transformer is computed on a CPU, given whether its attention is our own."""

    attention_backend: str
    """What computes the transformer's attention, see `backends.resolve_backend`."""

    pipelines: ClassVar[tuple[Any, ...]]
    """The diffusers pipelines that this policy is made of; one of them is at `config.path`."""
    lora_targets: ClassVar[Sequence[str]] = ATTENTION
    """The layers that a LoRA adapts by default: each name stands for all linear layers whose name ends so."""
    lora_exclude: ClassVar[str] = ""
    """A layer that is none of them, though its name ends like theirs."""

    def __init__(self, config: PolicyConfig, pipeline: Any = None) -> None:
        self._config = config
        self._dtype: torch.dtype = getattr(torch, config.dtype)
        self._device = device_of(config.device)
        self.attention_backend = resolve_backend(config.attention, self._device, self._dtype, compiled=config.compile)
        folder = conditions_folder(config)
        if pipeline is None:
            self._pipeline = load_pipeline(config, *self.pipelines, prepare=self.preparation())
        else:
            self._pipeline = adopt_pipeline(config, pipeline, *self.pipelines, prepare=self.preparation())
        self._transformer = self._pipeline.transformer
        self._kind = type(self._transformer)  # before it is sharded, which makes another class of it
        self._tuning: Tuning
        if config.lora is not None:
            write = type(self._pipeline).save_lora_weights
            self._tuning = LoraTuning(self._transformer, config.lora, self.lora_targets, self.lora_exclude, write)
        else:
            self._tuning = FullTuning(self._transformer, self._load_transformer)
        self._inside = prepare_transformer(
            self._transformer, config, self._device, self.attention_backend, self._on_processor
        )
        if takes_channels_last(self._device, self._dtype):
            use_channels_last(self._pipeline.vae)
        self._transformer.to(self._device)
        self._placement = Placement(self._pipeline, config, self._device)
        self._placement.bring_transformer()
        # By now the model's files are there, which its keys depend on.
        self._kept = None if folder is None else ConditionsFolder(folder, config, self._device)
        self._ids: dict[tuple[Grid, ...], Tensor] = {}
        self._grid = self._tokens_of("policy.height and policy.width", config.height, config.width)
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
            **settings: Other fields of `PolicyConfig`, such as `dtype`, `height` or `kind`. What is not given has the
                value of the model's preset. The kind is found by the pipeline's class.

        Returns:
            A policy of this class; of the kind for the pipeline where this is the base class.

        Raises:
            ModelError: There is no such pipeline in safetensors, or no policy for it.
            ConfigError: A setting is unknown or not valid.
        """
        from customized_grpo.policies import load_policy  # which imports this module

        return load_policy(cls, path, lora_rank, pipeline, settings)

    @property
    def config(self) -> PolicyConfig:
        """The settings that the policy was made with."""
        return self._config

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(tokens, channels)."""
        rows, columns = self._grid
        return rows * columns, self._transformer.config.in_channels

    def encode(self, prompt: str, references: Sequence[Image.Image]) -> Conditions:
        """The conditions of one pair, one row, in the model's precision and on its device.

        Raises:
            ModelError: the model can make nothing of this prompt or of these references; one line with the remedy.
        """
        pictures = [picture.convert("RGB") for picture in references]
        if self._kept is None:
            return self._encode(prompt, pictures)
        return self._kept.get(prompt, pictures, lambda: self._encode(prompt, pictures))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures float32 (B, 3, H, W) in [0, 1] of clean latents (B, tokens, channels)."""
        self._placement.bring(self._pipeline.vae)
        return self.decode_latents(latents)

    def sigmas(self, steps: int) -> Tensor:
        """The scheduler's noise levels, on the CPU, shifted as the pipeline does for this size.

        Raises:
            ValueError: `steps` is below 1, or is 1 where the scheduler stretches its levels to a
                terminal one, which leaves a single level undefined.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        scheduler = self._pipeline.scheduler
        if steps == 1 and scheduler.config.get("shift_terminal"):
            raise ValueError("steps must be at least 2, not 1: this model's scheduler has a shift_terminal")
        levels: Any = np.linspace(1.0, 1 / steps, steps)
        scheduler.set_timesteps(sigmas=levels, mu=self.shift(steps))
        shifted: Tensor = scheduler.sigmas.float().cpu().clone()
        return shifted

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """Velocity float32 (B, tokens, channels) of latents of that shape at noise levels (B,).

        Carries a gradient to `trainable()` where gradients are enabled, but not in `reference()`.

        Raises:
            ValueError: shapes disagree.
        """
        check_batch(latents, sigma, conditions, self.latent_shape)
        if self._config.offload:
            self._placement.bring_transformer()
        rows = {name: row.to(self._device, self._dtype) for name, row in conditions.rows.items()}
        tokens, grids = self._tokens(latents, rows)

        def told(rows: dict[str, Tensor]) -> Tensor:
            with self._inside():
                output: Tensor = self._transformer(
                    hidden_states=tokens,
                    timestep=self._timestep(sigma),
                    return_dict=False,
                    **self.transformer_inputs(rows, grids),
                )[0]
            return output[:, : latents.shape[1]].float()

        if self._config.true_cfg == 1:
            return told(rows)
        negative = {name.removeprefix(NEGATIVE): row for name, row in rows.items() if name.startswith(NEGATIVE)}
        return self.guided(told(rows), told(negative))

    def trainable(self) -> dict[str, nn.Parameter]:
        """The LoRA's parameters, or all of the transformer's, by their names in the transformer; on the device."""
        self._transformer.to(self._device)  # so that an optimiser's state is made, or loaded, where the work is
        return self._tuning.trainable()

    def shard(self, fully_shard: Callable[[nn.Module], object]) -> None:
        """Spread the transformer's weights over processes by `fully_shard`, which makes FSDP2's shards of a module.

        From then on all processes call `velocity`, `reference`, `save` and `load` together.

        Raises:
            ModelError: a setting of the policy does not go with shards.
        """
        for name in ("offload", "quantise", "compile"):
            if getattr(self._config, name):
                raise ModelError(f"policy.{name}: does not go with FSDP; leave it out, or launch without FSDP")
        fully_shard(self._transformer)
        sum_over_processes(self._transformer)

    def reference(self) -> AbstractContextManager[None]:
        """Inside it `velocity` is that of the untuned model, and no gradient is recorded."""
        return self._tuning.reference()

    def save(self, folder: Path) -> None:
        """Write pytorch_lora_weights.safetensors, which `pipeline.load_lora_weights(folder)` loads.

        All weights, where all are tuned, go to the folder "transformer" in it instead, which the
        transformer's own class loads by `from_pretrained`.
        """
        self._tuning.save(folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, bit for bit, into the parameters of `trainable()`.

        Raises:
            ModelError: the file is missing, damaged, or of another model; nothing is changed then.
        """
        self._tuning.load(folder)

    def save_merged(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the whole pipeline in safetensors and `dtype`, with what training changed in its weights.

        The pipeline's own class loads it by `from_pretrained`. The policy itself is of no use after it.
        """
        self._tuning.merge(dtype)
        self._pipeline.to(dtype)
        self._pipeline.save_pretrained(folder, safe_serialization=True)

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
        for k, picture in enumerate(references, 1):
            rows[REFERENCE.format(k)] = self.encode_reference(picture, len(references))
        return Conditions(rows)

    def preparation(self) -> Callable[[nn.Module], None] | None:
        """What changes the transformer's weights before they are quantised, adapted or tuned; None: nothing does."""
        return None

    @abstractmethod
    def encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Those of `Conditions.rows` that speak of the prompt, one row; `references` are RGB."""

    @abstractmethod
    def encode_reference(self, picture: Image.Image, count: int) -> Tensor:
        """Tokens of one RGB reference of `count` on their grid, (1, rows, columns, channels)."""

    @abstractmethod
    def decode_latents(self, latents: Tensor) -> Tensor:
        """What `decode` says."""

    @abstractmethod
    def transformer_inputs(self, rows: dict[str, Tensor], grids: tuple[Grid, ...]) -> dict[str, Any]:
        """What the transformer takes besides tokens and timestep, of `Conditions.rows` and the grids of tokens."""

    def guided(self, told: Tensor, negative: Tensor) -> Tensor:
        """The velocity that is followed, of the one told the prompt and the one told the negative prompt."""
        return negative + self._config.true_cfg * (told - negative)

    def _image_ids(self, grids: tuple[Grid, ...]) -> Tensor:
        """Position ids of the image and its references on the model's device, made once for the same grids."""
        if grids not in self._ids:
            self._ids[grids] = self.position_ids(grids).to(self._device)
        return self._ids[grids]

    def position_ids(self, grids: tuple[Grid, ...]) -> Tensor:
        """The model's own, for `_image_ids`; only of a model whose transformer takes position ids."""
        raise NotImplementedError

    @abstractmethod
    def shift(self, steps: int) -> float:
        """The scheduler's mu for this size and number of steps."""

    def _timestep(self, sigma: Tensor) -> Tensor:
        """Noise levels as the pipeline hands them to its transformer, rounded as they are there in any precision."""
        scale = self._pipeline.scheduler.config.num_train_timesteps
        timestep: Tensor = (sigma.to(self._device, torch.float32) * scale).to(self._dtype) / 1000
        return timestep

    def _tokens(self, latents: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, tuple[Grid, ...]]:
        """The picture's tokens and its references' in one row, (B, tokens, channels), and their grids."""
        count = sum(name.startswith(REFERENCE.format("")) for name in rows)
        references = [rows[REFERENCE.format(k)] for k in range(1, count + 1)]
        parts = [latents.to(self._device, self._dtype), *[r.flatten(1, 2) for r in references]]
        return torch.cat(parts, dim=1), (self._grid, *[(r.shape[1], r.shape[2]) for r in references])

    def _tokens_of(self, key: str, height: int, width: int) -> Grid:
        """Rows and columns of tokens of a picture; `key` is the setting to name where there are none."""
        multiple = self._pipeline.vae_scale_factor * PATCH
        if height < multiple or width < multiple:
            raise ModelError(
                f"{key}: {height}x{width} is less than one token of this model; give at least {multiple}x{multiple}"
            )
        return height // multiple, width // multiple

    def _load_transformer(self) -> nn.Module:
        """The untuned transformer again, on the CPU."""
        model = load_transformer(self._config, self._kind)
        if (prepare := self.preparation()) is not None:
            prepare(model)
        return model


def sequence_shift(scheduler: Any, tokens: int) -> float:
    """The scheduler's mu for a number of tokens, as FLUX.1's and Qwen-Image's pipelines have it."""
    base, largest = scheduler.config.get("base_shift", 0.5), scheduler.config.get("max_shift", 1.15)
    fewest, most = scheduler.config.get("base_image_seq_len", 256), scheduler.config.get("max_image_seq_len", 4096)
    slope = (largest - base) / (most - fewest)
    shift: float = tokens * slope + (base - slope * fewest)
    return shift


def nearest_size(height: int, width: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The (height, width) of `sizes` whose aspect ratio is nearest; the narrower of two as near."""
    aspect = width / height
    _, width, height = min((abs(aspect - w / h), w, h) for h, w in sizes)
    return height, width


def check_batch(latents: Tensor, sigma: Tensor, conditions: Conditions, latent_shape: tuple[int, ...]) -> None:
    """Raises ValueError where the arguments of `Policy.velocity` do not fit together."""
    if latents.shape[1:] != latent_shape or not len(latents) == len(sigma) == len(conditions):
        raise ValueError(
            f"latents {tuple(latents.shape)}, sigma {tuple(sigma.shape)} and {len(conditions)} "
            f"conditions do not fit; latents are (B, {', '.join(map(str, latent_shape))})"
        )
