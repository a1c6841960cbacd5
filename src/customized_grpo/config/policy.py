"""The generator to tune."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from customized_grpo.config.kinds import KINDS, POLICIES
from customized_grpo.config.presets import DEFAULT, KIND, PATH, fill, preset_of
from customized_grpo.config.section import PathOrText, Section, TupleOrList

#: Pixels of a picture's side that no model here draws: whoever asks for more has mistyped.
LARGEST_SIDE = 16384


class LoraConfig(Section):
    """The adapter that training moves."""

    rank: int = Field(
        DEFAULT["policy.lora.rank"],
        ge=1,
        description="LoRA rank. 128 fits a GPU of 80 GB with FLUX.1 at 1024 x 1024 pixels without offloading; the "
        "paper's 512 takes 33 GB for weights, gradients and Adam states.",
    )
    alpha: float | None = Field(None, gt=0, description="scale of the update; the rank where none is given")
    targets: list[str] | None = Field(None, description="module names to adapt; the policy's own list where none")


class PolicyConfig(Section):
    """The generator to tune."""

    kind: str = Field(KIND, description=f"{', '.join(POLICIES)}, or package.module:Class, or file.py:Class")
    path: str = Field(PATH, description="hub id or folder of a diffusers pipeline")
    revision: str | None = Field(None, description="branch, tag or commit on the hub; null: its main branch")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="of the frozen weights and of what is computed; a LoRA's own weights are float32 always"
    )
    device: str | None = Field(None, description="where none is given: the accelerator that is there, or the CPU")
    height: int = Field(
        DEFAULT["policy.height"],
        ge=16,
        le=LARGEST_SIDE,
        multiple_of=8,
        description="Height of generated images in pixels.",
    )
    width: int = Field(
        DEFAULT["policy.width"],
        ge=16,
        le=LARGEST_SIDE,
        multiple_of=8,
        description="Width of generated images in pixels.",
    )
    reference_sizes: list[TupleOrList[tuple[int, int]]] | None = Field(
        DEFAULT["policy.reference_sizes"],
        description="(height, width) to resize references to, the nearest in shape; null: the model's own rule",
    )
    max_sequence_length: int = Field(
        DEFAULT["policy.max_sequence_length"], ge=1, description="text tokens of the long text encoder"
    )
    guidance: float = Field(
        DEFAULT["policy.guidance"], ge=0, description="the distilled guidance of the model, an input"
    )
    true_cfg: float = Field(
        DEFAULT["policy.true_cfg"],
        ge=1,
        description="scale of classifier-free guidance by a second pass of the model; 1: off, a single pass",
    )
    negative_prompt: str = Field(
        DEFAULT["policy.negative_prompt"],
        description="of true_cfg: what the second pass reads in place of the prompt",
    )
    lora: LoraConfig | None = Field(LoraConfig(), description="null: all weights of the transformer are tuned")
    options: dict[str, Any] = Field({}, description="whatever a class of your own wants to be told")
    gradient_checkpointing: bool = Field(
        True, description="each block's activations are computed again on the way back: less memory, more time"
    )
    offload_activations: bool = Field(
        False, description="what gradient_checkpointing keeps of each block waits in host memory until it is wanted"
    )
    quantise: Literal["int8", "nf4"] | None = Field(
        None, description="linear layers of the frozen transformer: int8 (torchao) or nf4 (bitsandbytes); needs a LoRA"
    )
    quantise_text_encoders: Literal["int8", "nf4"] | None = Field(None, description="the same of the text encoders")
    offload: bool = Field(
        False, description="what is not at work stays in host memory: text encoders and VAE, or the transformer"
    )
    conditions: PathOrText | None = Field(
        None,
        description="folder that keeps what text encoders and VAE say of a pair; with it, those are loaded only for "
        "pairs that are new",
    )
    attention: str = Field(
        "auto",
        description="Attention backend: auto, native, flash, cudnn, flash-3 (of the kernels package), efficient, math, "
        "or another of diffusers' names. auto is safe to train with on every device; native is torch's own choice, "
        "whose backward pass can crash on Hopper GPUs",
    )
    compile: bool = Field(
        False, description="torch.compile of the transformer's blocks; later updates' ratios then carry its rounding"
    )
    kernels: Literal["auto", "off"] = Field(
        "auto",
        description="Fused layers for LoRA, FLUX.1's blocks and gradient checkpointing (auto), or only those of "
        "diffusers, peft and torch (off). A layer that differs from the release that its kernel was written for is "
        "always the library's.",
    )
    adapter: str | None = Field(None, description="UNO's LoRA, which the model starts from: a .safetensors file")
    adapter_as: Literal["fused", "start"] = Field(
        "fused",
        description="fused: in the weights, with a new LoRA on top; start: it is itself the LoRA that is trained",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        """Give the keys that are not named the values of the model's preset."""
        return fill(values, preset_of(values).section("policy")) if isinstance(values, dict) else values

    @field_validator("kind")
    @classmethod
    def _kind_is_known(cls, kind: str) -> str:
        """A name of the list, or a path to a class, which says so by its colon."""
        if ":" not in kind and kind not in KINDS:
            raise ValueError(f"should be {', '.join(KINDS)}, or package.module:Class, or file.py:Class")
        return kind

    @field_validator("reference_sizes")
    @classmethod
    def _sizes_are_sizes(cls, sizes: list[tuple[int, int]] | None) -> list[tuple[int, int]] | None:
        if sizes is not None and (not sizes or min(map(min, sizes)) < 1):
            raise ValueError("should name sizes (height, width) of 1 or more, or be null for the model's own rule")
        return sizes

    @field_validator("options")
    @classmethod
    def _options_of_own(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """The built-in kinds would not look at them."""
        kind = info.data.get("kind", ":")
        if options and kind in POLICIES:
            raise ValueError(f"belong to a class of your own, not to {kind}; leave them out")
        return options

    @field_validator("offload_activations")
    @classmethod
    def _something_is_kept(cls, offload: bool, info: ValidationInfo) -> bool:
        """Without checkpointing there is nothing that could wait there."""
        if offload and not info.data.get("gradient_checkpointing", True):
            raise ValueError("is of policy.gradient_checkpointing, which is off; set both, or leave this out")
        return offload

    @field_validator("quantise")
    @classmethod
    def _quantised_is_frozen(cls, quantise: str | None, info: ValidationInfo) -> str | None:
        """Rounded weights cannot be tuned."""
        if quantise is not None and info.data.get("lora", True) is None:
            raise ValueError("a quantised transformer cannot be tuned itself; set policy.lora, or leave this at null")
        return quantise

    @field_validator("adapter")
    @classmethod
    def _adapter_of_uno(cls, adapter: str | None, info: ValidationInfo) -> str | None:
        """No other kind starts from an adapter."""
        kind = info.data.get("kind", "uno")
        if adapter is not None and kind != "uno":
            raise ValueError(f"belongs to policy.kind=uno, not to {kind}; set that kind, or set this to null")
        return adapter

    @field_validator("adapter_as")
    @classmethod
    def _start_is_a_lora(cls, adapter_as: str, info: ValidationInfo) -> str:
        """All weights cannot start from an adapter but by having it fused."""
        if adapter_as == "start" and info.data.get("lora", True) is None:
            raise ValueError("start is of a LoRA, and policy.lora is null; set policy.lora, or leave this at fused")
        return adapter_as
