"""One typed configuration of a run. Every key has a default, and the defaults are the embedded run.

A YAML file names what differs, `--set a.b=c` what differs from the file; unknown keys are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

#: Rises when a setting changes its name or meaning.
VERSION = 1

#: A path of this form means the folder of that name inside the package's own embedded models.
EMBEDDED = "embedded"
#: The kinds of generators that are built in.
POLICIES = ("flux-kontext", "uno", "flux2", "qwen-image-edit")

#: Pixels of a picture's side that no model here draws: whoever asks for more has mistyped.
LARGEST_SIDE = 16384


class ConfigError(ValueError):
    """A configuration that cannot be run: `problems`, one line each, that name the key and the remedy."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _size_or_auto(value: object, inner: ValidatorFunctionWrapHandler) -> object:
    # One line for the key, where pydantic would give one for each of the two types.
    try:
        size = inner(value)
    except ValidationError:
        size = 0
    if size != "auto" and size < 1:
        raise ValueError("should be a number of at least 1, or auto")
    return size


#: Items of one forward pass, or as many as memory is free for.
SizeOrAuto = Annotated[int | Literal["auto"], WrapValidator(_size_or_auto)]


class LoraConfig(_Section):
    """The adapter that training moves."""

    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0, description="scale of the update; the rank where none is given")
    targets: list[str] | None = Field(None, description="module names to adapt; the policy's own list where none")


class PolicyConfig(_Section):
    """The generator to tune."""

    kind: str = Field("flux-kontext", description=f"{', '.join(POLICIES)}, or package.module:Class, or file.py:Class")
    path: str = Field("embedded/pipeline", description="hub id or folder of a diffusers pipeline")
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str | None = Field(None, description="where none is given: the accelerator that is there, or the CPU")
    height: int = Field(64, ge=16, le=LARGEST_SIDE, multiple_of=8)
    width: int = Field(64, ge=16, le=LARGEST_SIDE, multiple_of=8)
    reference_sizes: list[tuple[int, int]] | None = Field(
        [(64, 64)],
        description="(height, width) to resize references to, the nearest in shape; null: the model's own rule",
    )
    max_sequence_length: int = Field(24, ge=1, description="text tokens of the long text encoder")
    guidance: float = Field(2.5, ge=0, description="the distilled guidance of the model, an input")
    true_cfg: float = Field(
        1.0, ge=1, description="scale of classifier-free guidance by a second pass of the model; 1: off, a single pass"
    )
    negative_prompt: str = Field("", description="of true_cfg: what the second pass reads in place of the prompt")
    lora: LoraConfig | None = Field(LoraConfig(), description="null: all weights of the transformer are tuned")
    options: dict[str, Any] = Field({}, description="whatever a class of your own wants to be told")
    gradient_checkpointing: bool = False
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
    conditions: Path | None = Field(
        None,
        description="folder that keeps what text encoders and VAE say of a pair; with it, those are loaded only for "
        "pairs that are new",
    )
    compile: bool = Field(
        False, description="torch.compile of the transformer's blocks; ratios are then 1 within rounding, not exactly"
    )
    adapter: str | None = Field(None, description="UNO's LoRA, which the model starts from: a .safetensors file")
    adapter_as: Literal["fused", "start"] = Field(
        "fused",
        description="fused: in the weights, with a new LoRA on top; start: it is itself the LoRA that is trained",
    )

    @field_validator("kind")
    @classmethod
    def _kind_is_known(cls, kind: str) -> str:
        """A name of the list, or a path to a class, which says so by its colon."""
        if ":" not in kind and kind not in POLICIES:
            raise ValueError(f"should be {', '.join(POLICIES)}, or package.module:Class, or file.py:Class")
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
        if options and ":" not in kind:
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


class DataConfig(_Section):
    """Where pairs come from."""

    path: str = Field(
        "world",
        description="world or world-recoloured (built in), a .jsonl file, a SynCD-style .json, a DreamBench folder",
    )
    split: Literal["train", "held-out"] = "train"
    size: int | None = Field(
        None, ge=1, description="pairs of the built-in world (null: 4096), or to take of a file (null: all)"
    )
    seed: int = Field(0, ge=0)
    root: Path | None = Field(None, description="folder that the file's relative paths start from; its own where none")


class RewardConfig(_Section):
    """One judge. Several may feed a role; their weights count inside it."""

    kind: str = Field(
        description="dino, dino-patches, clip-image, siglip-image (identity), clip, siglip, pickscore, hps-v2, hps-v3 "
        "(prompt), vlm, remote (either), copy-paste (guard), or package.module:Class, or file.py:function"
    )
    role: Literal["identity", "prompt", "guard"] = Field(
        description="a guard teaches nothing: among the rewards it vetoes by its limit, among the monitors it watches"
    )
    name: str | None = None
    path: str | None = Field(None, description="hub id or folder of the judge's own model")
    device: str | None = Field(
        None, description="where it works; null: where the policy does. cpu leaves all of an accelerator to the policy"
    )
    weight: float = Field(1.0, ge=0)
    limit: float | None = Field(
        None,
        allow_inf_nan=False,
        description="of a guard among the rewards: a picture that scores above it drops out of its group",
    )
    options: dict[str, Any] = {}


class MethodConfig(_Section):
    """From scores to advantages: SARS, TDW and their rivals."""

    shaping: Literal["sars", "none", "bonus", "min", "max", "harmonic", "product"] = "sars"
    gamma: float = Field(0.4, ge=0)
    weighting: Literal["tdw", "tdw-reversed", "tdw-shuffled", "static", "table"] = Field(
        "tdw",
        description="tdw-shuffled repeats a mistake for comparison: weights read at shuffled positions, not at steps",
    )
    normalise: Literal["roles", "sum"] = Field(
        "roles",
        description="each role in its group, then weighted; or the static weighted sum of the raw rewards as one, "
        "which neither combine nor std_floor applies to",
    )
    prompt_weight: float = Field(0.5, ge=0, description="of static weighting alone")
    identity_weight: float = Field(0.5, ge=0, description="of static weighting alone")
    prompt_table: list[Annotated[float, Field(ge=0)]] = Field(
        [], description="of table weighting alone: a weight for each of rollout.steps, the noisiest first"
    )
    identity_table: list[Annotated[float, Field(ge=0)]] = Field([], description="of table weighting alone, likewise")
    combine: Literal["rewards", "advantages"] = Field(
        "rewards",
        description="inside a role: normalise the weighted sum, or sum what is normalised one by one",
    )
    spread: Literal["group", "batch"] = Field(
        "group", description="what advantages are divided by: each group's own deviation, or that of all groups"
    )
    std_floor: dict[Literal["identity", "prompt"], float] = Field(
        {},
        description="least standard deviation a group's role reward is divided by; none in the paper",
    )
    advantage_clip: float = Field(5.0, gt=0)

    # On the field, not on the section, so that the error bears the key's own name and line.
    @field_validator("identity_weight")
    @classmethod
    def _something_counts(cls, weight: float, info: ValidationInfo) -> float:
        if weight == 0 == info.data.get("prompt_weight") and info.data.get("weighting") == "static":
            raise ValueError("is 0 as method.prompt_weight is, which leaves nothing to learn; raise one")
        return weight

    @field_validator("normalise")
    @classmethod
    def _sum_stands_alone(cls, normalise: str, info: ValidationInfo) -> str:
        """A sum has no roles that could be shaped, nor be weighted step by step."""
        if normalise == "sum" and (info.data.get("shaping"), info.data.get("weighting")) != ("none", "static"):
            raise ValueError(
                "sum needs method.shaping=none and method.weighting=static; set both, or leave it at roles"
            )
        return normalise


class WindowConfig(_Section):
    """Stochastic steps inside a moving window alone, deterministic ones outside it (MixGRPO, arXiv 2507.21802)."""

    size: int = Field(4, ge=1, description="stochastic steps of an image")
    order: Literal["progressive", "decaying", "random"] = "progressive"
    stay: int = Field(25, ge=1, description="iterations at one position")
    stride: int = Field(1, ge=1, description="steps from one position to the next")
    start: int = Field(0, ge=0, description="first position")
    roll_back: bool = Field(False, description="from the last position to the first again, instead of remaining")
    decay: float = Field(0.1, ge=0, description="of decaying order: how fast stays shorten")
    decay_from: int = Field(13, ge=0, description="of decaying order: the position from which stays shorten")


class RolloutConfig(_Section):
    """How a group of images is drawn."""

    sampler: Literal["dance", "flow", "cps"] = "flow"
    eta: float = Field(1.0, gt=0)
    steps: int = Field(6, ge=2)
    shift: float | None = Field(3.0, gt=0, description="of the noise levels, 1 being even; null: the model's own")
    group_size: int = Field(12, ge=2, description="images of a pair, which are held against one another")
    pairs: int = Field(4, ge=1, description="groups of one iteration, over all processes")
    shared_noise: bool = Field(True, description="one initial noise for a whole group")
    layout: Literal["groups", "spread"] = Field(
        "groups", description="of several processes, each draws whole groups; or all the same share of all images"
    )
    batch_size: SizeOrAuto = Field(48, description="images of one forward pass; auto: as memory is free")
    overlap: bool | None = Field(
        None, description="score a batch while the next is drawn; null: where the policy is on an accelerator"
    )
    window: WindowConfig | None = Field(None, description="null: all steps but the last are stochastic")

    @field_validator("window")
    @classmethod
    def _window_fits(cls, window: WindowConfig | None, info: ValidationInfo) -> WindowConfig | None:
        steps = info.data.get("steps")
        if window is not None and steps is not None and window.start + window.size > steps - 1:
            raise ValueError(
                f"start {window.start} and size {window.size} pass the last stochastic step of rollout.steps={steps}; "
                f"together at most {steps - 1}"
            )
        return window


class TrainConfig(_Section):
    """How the policy is moved."""

    iterations: int = Field(60, ge=1)
    updates: int = Field(2, ge=1, description="optimiser steps of one iteration")
    trained_fraction: float = Field(1.0, gt=0, le=1, description="share of the stochastic steps, drawn per image")
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["constant", "linear"] = Field("constant", description="linear: the rate falls to 0 over the run")
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(1.1e-4, ge=0)
    max_gradient_norm: float = Field(1.0, gt=0)
    clip_range: float = Field(1e-4, gt=0)
    clip_range_high: float | None = Field(None, gt=0, description="above a ratio of 1; null: clip_range (DAPO)")
    ratio: Literal["plain", "guard"] = Field(
        "guard", description="guard: normalised, and steps weighed alike (GRPO-Guard, arXiv 2510.22319)"
    )
    kl_weight: float = Field(0.0, ge=0)
    ema: float = Field(0.0, ge=0, lt=1, description="decay of a moving average of the weights, a step; 0: none")
    batch_size: SizeOrAuto = Field(
        48, description="(image, step) pairs of one forward and backward pass; auto: as memory is free"
    )
    timeout: float = Field(30.0, gt=0, description="minutes that a process waits for the others before it fails")
    max_missing: float = Field(
        0.1, ge=0, le=1, description="share of an iteration's images that may lack a score; above it the run stops"
    )
    max_skipped: int = Field(
        3,
        ge=0,
        description="updates in a row that may be skipped, as their gradient is not finite; above it the run stops",
    )
    max_drift: float | None = Field(
        1.0, gt=0, description="squared change of velocities, over the base model's squared; above it the run stops"
    )
    checkpoint_every: int = Field(10, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    sample_every: int = Field(15, ge=1, description="iterations between grids of sample images")
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        ["tensorboard"], description="where the training is followed, besides metrics.jsonl; [] for nowhere"
    )

    @field_validator("betas")
    @classmethod
    def _betas_decay(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("should be two numbers from 0 to below 1")
        return betas

    @field_validator("trackers")
    @classmethod
    def _trackers_differ(cls, trackers: list[str]) -> list[str]:
        if repeated := next((name for name in trackers if trackers.count(name) > 1), None):
            raise ValueError(f"names {repeated} twice; name it once")
        return trackers


class EvaluationConfig(_Section):
    """What is drawn and scored before and after training."""

    data: DataConfig = Field(
        DataConfig(split="held-out", size=96, seed=1), description="by --data, pairs of the given data instead"
    )
    steps: int = Field(10, ge=1, description="of deterministic Euler sampling")
    images: int = Field(1, ge=1, description="images of each pair")
    seed: int = 0
    monitors: list[RewardConfig] = Field(
        [
            RewardConfig(
                kind="dino",
                role="identity",
                name="identity (independent)",
                path="embedded/judge-identity",
            ),
            RewardConfig(
                kind="clip",
                role="prompt",
                name="prompt (independent)",
                path="embedded/judge-prompt",
            ),
            RewardConfig(kind="copy-paste", role="guard", name="copy-paste"),
        ],
        description="judges that are never optimised",
    )


class Config(_Section):
    """A run."""

    version: int = Field(VERSION, description="of the settings themselves; a run that another one wrote is refused")
    seed: int = Field(0, ge=0)
    policy: PolicyConfig = PolicyConfig()
    data: DataConfig = DataConfig()
    rewards: list[RewardConfig] = [
        RewardConfig(kind="dino", role="identity", name="identity", path="embedded/reward-identity"),
        RewardConfig(kind="clip", role="prompt", name="prompt", path="embedded/reward-prompt"),
    ]
    method: MethodConfig = MethodConfig()
    rollout: RolloutConfig = RolloutConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @field_validator("version")
    @classmethod
    def _known(cls, version: int) -> int:
        if version != VERSION:
            raise ValueError(
                f"these are settings of another version of this package, which reads {VERSION}; use the one that "
                f"wrote them (a run's starts.jsonl says which), or set what `cgrpo info` lists and version: {VERSION}"
            )
        return version

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        for reward in self.rewards:
            name = reward.name or reward.kind
            if reward.role == "guard" and reward.limit is None:
                raise ValueError(
                    f"rewards: {name!r} is a guard; give it a limit, above which it vetoes a picture, or put it under "
                    "evaluation.monitors, where it only watches"
                )
            if reward.role != "guard" and reward.limit is not None:
                raise ValueError(f"rewards: {name!r} has a limit, which is a guard's alone; leave it out")
        for monitor in self.evaluation.monitors:
            if monitor.limit is not None:
                name = monitor.name or monitor.kind
                raise ValueError(
                    f"evaluation.monitors: {name!r} has a limit, and monitors only watch; leave it out, or put the "
                    "guard under rewards"
                )
        roles = {reward.role for reward in self.rewards if reward.weight > 0}
        for role in ("identity", "prompt"):
            if role not in roles:
                raise ValueError(f"rewards: no reward of role {role} with a weight above 0; add one")
        if self.method.weighting == "table":
            for key in ("prompt_table", "identity_table"):
                count = len(getattr(self.method, key))
                if count != self.rollout.steps:
                    raise ValueError(
                        f"method.{key}: holds {count} weights for rollout.steps={self.rollout.steps}; give one for each"
                    )
        names = [reward.name or reward.kind for reward in [*self.rewards, *self.evaluation.monitors]]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"rewards: two are named {name!r}; give each a name of its own")
        return self
