"""The part of a policy that differs between models."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from customized_grpo.config import PolicyConfig
from customized_grpo.config.kinds import Preset
from customized_grpo.policies.adapters import Terms, adapter_terms

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Linear layers of joint attention by diffusers' names: LoRA targets in every built-in model."""

Grid = tuple[int, int]


class PipelineHooks(ABC):
    """Declarations and methods of a model that `PipelinePolicy` calls. Defaults are FLUX.1's."""

    _config: PolicyConfig
    _dtype: torch.dtype
    _device: torch.device
    _pipeline: Any
    _transformer: Any

    pipelines: ClassVar[tuple[Any, ...]]
    """diffusers pipelines that this policy loads; one of them is at `config.path`."""
    lora_targets: ClassVar[Sequence[str]] = ATTENTION
    """Default LoRA targets: each stands for all linear layers whose name ends with it."""
    lora_exclude: ClassVar[str] = ""
    """Full name of a layer that is no target, though its name ends like one."""
    presets: ClassVar[tuple[Preset, ...]] = ()
    """Defaults of the models of a registered class; those of built-in models are in `config.kinds`."""
    example_call: ClassVar[str] = ""
    """Arguments of the pipeline's call in a model card, besides prompt, size and steps; "" if it takes no references.

    {guidance}, {true_cfg}, {negative!r}, {tokens}, {height} and {width} are replaced by the run's settings.
    """
    example_guidance: ClassVar[str] = ""
    """Further arguments where `true_cfg` is not 1."""
    example_size: ClassVar[str] = "\n    height={height},\n    width={width},"
    """Arguments of the image's size; "" if the pipeline takes none."""
    example_load: ClassVar[str] = "pipeline.load_lora_weights(LORA)"
    """Statements in a model card that load the LoRA in the folder or repository LORA into `pipeline`."""

    @property
    def token_channels(self) -> int:
        """Channels of a token's latents."""
        return self._transformer.config.in_channels

    @property
    def token_pixels(self) -> int:
        """Side of a token's square in pixels."""
        return self._pipeline.vae_scale_factor * 2  # 2x2 latents make one token

    @abstractmethod
    def encode_prompt(self, prompt: str, references: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Encode a prompt to rows of `Conditions` with one row each; `references` are RGB."""

    @abstractmethod
    def encode_reference(self, image: Image.Image, count: int) -> Tensor:
        """Encode one RGB reference of `count` to its tokens on their grid, (1, rows, columns, channels)."""

    @abstractmethod
    def decode_latents(self, latents: Tensor, grid: Grid) -> Tensor:
        """Decode packed latents (B, tokens, channels) on a grid to images, float32 (B, 3, H, W) in [0, 1]."""

    @abstractmethod
    def transformer_inputs(self, rows: dict[str, Tensor], grids: tuple[Grid, ...]) -> dict[str, Any]:
        """Return arguments of the transformer besides tokens and timestep.

        Args:
            rows: Those of `Conditions`.
            grids: Rows and columns of tokens of the image and of each reference.
        """

    def timestep(self, timesteps: Tensor) -> Tensor:
        """Return the scheduler's timesteps (B,), float32, as the transformer takes them."""
        # Rounded in the model's precision as the pipelines do.
        return timesteps.to(self._dtype) / 1000

    def transform(self, tokens: Sequence[Tensor], timestep: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Compute the transformer's output (B, at least the image's tokens, channels), the image's tokens first.

        Args:
            tokens: Those of the image and of each reference, (B, tokens, channels).
            timestep: Noise levels (B,) as the transformer takes them.
            inputs: Its other arguments, from `transformer_inputs`.
        """
        output: Tensor = self._transformer(
            hidden_states=torch.cat(tuple(tokens), dim=1), timestep=timestep, return_dict=False, **inputs
        )[0]
        return output

    def prompt_shapes(self, references: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes, without the batch, of `encode_prompt`'s rows for a long prompt and so many references."""
        return {"prompt_embeds": (self._config.max_sequence_length, self._transformer.config.joint_attention_dim)}

    def position_ids(self, grids: tuple[Grid, ...]) -> Tensor:
        """Return position ids of image and references, for `_image_ids`, if the transformer takes any."""
        raise NotImplementedError

    def prompt_tokens(self, prompts: Sequence[str]) -> tuple[list[int], int] | None:
        """Return the number of tokens of each prompt and the number that is read; None if all of them are."""
        return None

    def guided(self, conditional: Tensor, negative: Tensor) -> Tensor:
        """Apply classifier-free guidance to conditional and negative velocities."""
        return negative + self._config.true_cfg * (conditional - negative)

    def shift(self, steps: int, tokens: int) -> float:
        """Return the scheduler's mu for these numbers of steps and image tokens; here as FLUX.1 and Qwen-Image."""
        scheduler = self._pipeline.scheduler.config
        base, largest = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
        fewest, most = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
        slope = (largest - base) / (most - fewest)
        return tokens * slope + (base - slope * fewest)

    def adapter_terms(self, transformer: nn.Module, path: str) -> Terms:
        """Return the LoRA of `config.adapter` by layer. Raises ModelError if it does not fit."""
        return adapter_terms(transformer, self.pipelines[0], path)


def nearest_size(height: int, width: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the (height, width) of `sizes` with the nearest aspect ratio, the narrower of two equally near ones."""
    aspect = width / height
    _, width, height = min((abs(aspect - w / h), w, h) for h, w in sizes)
    return height, width


def latent_statistics(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation by channel of a video VAE's latents, for `latents` (B, C, 1, H, W)."""
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(latents)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std
