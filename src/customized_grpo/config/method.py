"""From scores to advantages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from customized_grpo.config.section import Section


class MethodConfig(Section):
    """From scores to advantages: SARS, TDW and their rivals."""

    shaping: Literal["sars", "none", "bonus", "min", "max", "harmonic", "product"] = Field(
        "sars", description="the term B beside the weighted advantages; sars is the paper's, the others its rivals"
    )
    gamma: float = Field(0.4, ge=0, description="the strength of B")
    gamma_last: float | None = Field(
        None, ge=0, description="gamma of the last iteration, in a straight line from gamma; null: gamma throughout"
    )
    weighting: Literal["tdw", "tdw-reversed", "tdw-shuffled", "static", "table"] = Field(
        "tdw",
        description="the roles' weights at each denoising step: the paper's, their reverse, one pair, or a table of "
        "your own; tdw-shuffled repeats a mistake for comparison: weights read at shuffled positions, not at steps",
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
    advantage_clip: float = Field(5.0, gt=0, description="bound of an advantage's size")
    surgery: Literal["none", "pcgrad"] = Field(
        "none",
        description="pcgrad: a gradient for each role, B in equal parts in both, less what opposes the other's "
        "(arXiv 2001.06782); an update needs a second backward pass",
    )

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

    @field_validator("surgery")
    @classmethod
    def _roles_have_gradients(cls, surgery: str, info: ValidationInfo) -> str:
        if surgery != "none" and info.data.get("normalise") == "sum":
            raise ValueError("pcgrad needs a gradient for each role; set method.normalise=roles, or leave it at none")
        return surgery
