"""What the policies made of a diffusers pipeline share; each model's own file holds the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux import pipeline_flux_kontext as kontext
from PIL import Image
from torch import Tensor, nn

from customized_grpo.config import PolicyConfig
from customized_grpo.models import ModelError
from customized_grpo.models.devices import device_of
from customized_grpo.models.freed import keep_freed_memory
from customized_grpo.policies.backends import PRODUCTS, context_of, resolve_backend, use_backend
from customized_grpo.policies.checkpointing import checkpointing
from customized_grpo.policies.conditions import ConditionsFolder, conditions_folder
from customized_grpo.policies.loading import load_part, load_pipeline, load_transformer
from customized_grpo.policies.processor import OnProcessor
from customized_grpo.policies.tuning import FullTuning, LoraTuning, Tuning
from customized_grpo.protocols import Conditions
from customized_grpo.tensors.sharding import sum_over_processes

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
    """A diffusers pipeline whose transformer sees the picture and its references as one row of packed tokens.

    A model of this kind adds what encodes a prompt and a reference, what decodes latents, its transformer's further
    inputs and the shift of its noise levels, and with them is a `protocols.Policy`. Latents are the pipeline's packed
    tokens, float32 (B, tokens, channels), of pictures of `config.height` x `config.width`, floored to multiples of a
    token's side as the pipelines do.

    The weights may be stored in any precision; all are converted to `config.dtype`. LoRA parameters are float32
    throughout. On a CPU GELU is `gelu`'s, see `OnProcessor`. Attention is computed by the backend that
    `config.attention` names, see `backends`; `attention_backend` is the one that was found. With gradients and
    without they are the same: a replay then has the very bits of its rollout.

    With `config.true_cfg` above 1 a velocity is taken twice, told the prompt and told `config.negative_prompt`, and
    leads away from the latter, as the pipelines do it (arXiv 2207.12598); gradients go through both.

    With `config.offload`, either the transformer is on the device or text encoders and VAE are, but for decoding, when
    the VAE joins it; the others wait in host memory. With `config.conditions`, a folder, conditions are read from
    there, see `ConditionsFolder`; text encoders are then loaded when the first pair comes that it lacks, and with both
    settings forgotten, not sent back.

    Args:
        config: model, size, precision and what to tune.
        pipelines: the pipeline's class, or those that will do.
        lora_targets: the layers that a LoRA adapts by default.
        lora_exclude: a layer that is none of them, though its name ends like theirs.

    Raises:
        ModelError: the path holds no such pipeline in safetensors, a size is less than one token, LoRA targets do not
            exist, or the attention backend is not available.
    """

    _on_processor: Callable[[bool], AbstractContextManager[object]] = OnProcessor
    """Inside what the transformer is computed on a CPU, given whether its attention is our own."""

    attention_backend: str
    """What computes the transformer's attention, see `backends.resolve_backend`."""

    def __init__(
        self, config: PolicyConfig, *pipelines: Any, lora_targets: Sequence[str], lora_exclude: str = ""
    ) -> None:
        self._config = config
        self._dtype: torch.dtype = getattr(torch, config.dtype)
        self._device = device_of(config)
        self.attention_backend = resolve_backend(config.attention, self._device, self._dtype, compiled=config.compile)
        folder = conditions_folder(config)
        self._pipeline = load_pipeline(config, *pipelines, prepare=self._preparation())
        self._encoders = [name for name in self._pipeline.components if name.startswith("text_encoder")]
        self._away = False  # whether text encoders and VAE may be off the device
        self._transformer = self._pipeline.transformer
        self._kind = type(self._transformer)  # before it is sharded, which makes another class of it
        self._tuning: Tuning
        if config.lora is not None:
            self._tuning = LoraTuning(self._transformer, config.lora, lora_targets, exclude=lora_exclude)
        else:
            self._tuning = FullTuning(self._transformer, self._load_transformer)
        use_backend(self._transformer, self.attention_backend)
        self._inside = context_of(self.attention_backend)
        if self._device.type == "cpu":
            keep_freed_memory()
            if not config.compile:
                self._inside = partial(self._on_processor, self.attention_backend == PRODUCTS)
        if config.gradient_checkpointing:
            self._transformer.enable_gradient_checkpointing(
                checkpointing(self._device, on_host=config.offload_activations, inside=self._inside)
            )
        if config.compile:
            self._transformer.compile_repeated_blocks()
        if takes_channels_last(self._device, self._dtype):
            use_channels_last(self._pipeline.vae)
        self._transformer.to(self._device)
        if config.offload:
            self._make_room()
        else:
            self._pipeline.to(self._device)
        # By now the model's files are there, which its keys depend on.
        self._kept = None if folder is None else ConditionsFolder(folder, config, self._device)
        self._ids: dict[tuple[Grid, ...], Tensor] = {}
        self._grid = self._tokens_of("policy.height and policy.width", config.height, config.width)
        for size in config.reference_sizes or ():
            self._tokens_of("policy.reference_sizes", *size)

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
        self._bring(self._pipeline.vae)
        return self._decode(latents)

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
        kontext.retrieve_timesteps(scheduler, sigmas=levels, mu=self._shift(steps))
        shifted: Tensor = scheduler.sigmas.float().cpu().clone()
        return shifted

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """Velocity float32 (B, tokens, channels) of latents of that shape at noise levels (B,).

        Carries a gradient to `trainable()` where gradients are enabled, but not in `reference()`.

        Raises:
            ValueError: shapes disagree.
        """
        check_batch(latents, sigma, conditions, self.latent_shape)
        if self._config.offload and not self._away:
            self._make_room()
        rows = {name: row.to(self._device, self._dtype) for name, row in conditions.rows.items()}
        tokens, grids = self._tokens(latents, rows)

        def told(rows: dict[str, Tensor]) -> Tensor:
            with self._inside():
                output: Tensor = self._transformer(
                    hidden_states=tokens, timestep=self._timestep(sigma), return_dict=False, **self._inputs(rows, grids)
                )[0]
            return output[:, : latents.shape[1]].float()

        if self._config.true_cfg == 1:
            return told(rows)
        negative = {name.removeprefix(NEGATIVE): row for name, row in rows.items() if name.startswith(NEGATIVE)}
        return self._guided(told(rows), told(negative))

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
        if self._config.offload:
            self._transformer.to("cpu")
        for name in self._encoders:
            if getattr(self._pipeline, name) is None:
                setattr(self._pipeline, name, load_part(self._config, self._pipeline, name))
        self._bring(*(getattr(self._pipeline, name) for name in self._encoders), self._pipeline.vae)
        rows = self._encode_prompt(prompt, references)
        if self._config.true_cfg != 1:
            negative = self._encode_prompt(self._config.negative_prompt, references)
            rows |= {f"{NEGATIVE}{name}": row for name, row in negative.items()}
        for k, picture in enumerate(references, 1):
            rows[REFERENCE.format(k)] = self._encode_reference(picture, len(references))
        return Conditions(rows)

    def _bring(self, *parts: nn.Module) -> None:
        """Have these parts of the pipeline on the device, too."""
        for part in parts:
            part.to(self._device)
        self._away = False

    def _make_room(self) -> None:
        """Have the transformer alone on the device."""
        for name in (*self._encoders, "vae"):
            part = getattr(self._pipeline, name)
            if self._config.conditions is not None and name in self._encoders:
                setattr(self._pipeline, name, None)
            elif part is not None:
                part.to("cpu")
        self._transformer.to(self._device)
        self._away = True

    def _preparation(self) -> Callable[[nn.Module], None] | None:
        """What changes the transformer's weights before they are quantised, adapted or tuned; None: nothing does."""
        return None

    @abstractmethod
    def _encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Those of `Conditions.rows` that speak of the prompt, one row; `references` are RGB."""

    @abstractmethod
    def _encode_reference(self, picture: Image.Image, count: int) -> Tensor:
        """Tokens of one RGB reference of `count` on their grid, (1, rows, columns, channels)."""

    @abstractmethod
    def _decode(self, latents: Tensor) -> Tensor:
        """What `decode` says."""

    @abstractmethod
    def _inputs(self, rows: dict[str, Tensor], grids: tuple[Grid, ...]) -> dict[str, Any]:
        """What the transformer takes besides tokens and timestep, of `Conditions.rows` and the grids of tokens."""

    def _guided(self, told: Tensor, negative: Tensor) -> Tensor:
        """The velocity that is followed, of the one told the prompt and the one told the negative prompt."""
        return negative + self._config.true_cfg * (told - negative)

    def _image_ids(self, grids: tuple[Grid, ...]) -> Tensor:
        """Position ids of the image and its references on the model's device, made once for the same grids."""
        if grids not in self._ids:
            self._ids[grids] = self._position_ids(grids).to(self._device)
        return self._ids[grids]

    def _position_ids(self, grids: tuple[Grid, ...]) -> Tensor:
        """The model's own, for `_image_ids`; only of a model whose transformer takes position ids."""
        raise NotImplementedError

    @abstractmethod
    def _shift(self, steps: int) -> float:
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
        if (prepare := self._preparation()) is not None:
            prepare(model)
        return model


def takes_channels_last(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions are computed with channels last: on CUDA, and in float32 on a CPU.

    On a CPU decoding takes a third less time then; half precision there keeps the pipeline's own bits.
    """
    return device.type == "cuda" or (device.type == "cpu" and dtype == torch.float32)


def use_channels_last(model: nn.Module) -> None:
    """Lay out the weights of a model's convolutions so that they compute with channels last."""
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)


def sequence_shift(scheduler: Any, tokens: int) -> float:
    """The scheduler's mu for a number of tokens, as FLUX.1's and Qwen-Image's pipelines have it."""
    shift: float = kontext.calculate_shift(
        tokens,
        scheduler.config.get("base_image_seq_len", 256),
        scheduler.config.get("max_image_seq_len", 4096),
        scheduler.config.get("base_shift", 0.5),
        scheduler.config.get("max_shift", 1.15),
    )
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
