"""How a group of images is drawn."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from customized_grpo.config.presets import DEFAULT
from customized_grpo.config.section import Section, SizeOrAuto


class WindowConfig(Section):
    """Stochastic steps inside a moving window alone, deterministic ones outside it (MixGRPO, arXiv 2507.21802)."""

    size: int = Field(4, ge=1, description="stochastic steps of an image")
    order: Literal["progressive", "decaying", "random"] = Field(
        "progressive", description="from noisy to clean, equally long at each position or ever shorter, or drawn"
    )
    stay: int = Field(25, ge=1, description="iterations at one position")
    stride: int = Field(1, ge=1, description="steps from one position to the next")
    start: int = Field(0, ge=0, description="first position")
    roll_back: bool = Field(False, description="from the last position to the first again, instead of remaining")
    decay: float = Field(0.1, ge=0, description="of decaying order: how fast stays shorten")
    decay_from: int = Field(13, ge=0, description="of decaying order: the position from which stays shorten")


class RolloutConfig(Section):
    """How a group of images is drawn."""

    sampler: Literal["dance", "flow", "cps"] = Field(
        "dance", description="the stochastic step's form (docs/options.md)"
    )
    eta: float = Field(0.4, gt=0, description="how much noise a stochastic step adds, in its sampler's own measure")
    steps: int = Field(25, ge=2, description="denoising steps of an image; the last is deterministic")
    shift: float | None = Field(
        DEFAULT["rollout.shift"], gt=0, description="of the noise levels, 1 being even; null: the model's own"
    )
    group_size: int = Field(12, ge=2, description="images of a pair, which are held against one another")
    pairs: int = Field(8, ge=1, description="groups of one iteration, over all processes")
    shared_noise: bool = Field(True, description="one initial noise for a whole group")
    layout: Literal["groups", "spread"] = Field(
        "groups", description="of several processes, each draws whole groups; or all the same share of all images"
    )
    batch_size: SizeOrAuto = Field(8, description="images of one forward pass; auto: as memory is free")
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
