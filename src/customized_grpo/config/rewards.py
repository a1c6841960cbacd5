"""The judges."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from customized_grpo.config.section import Section


class RewardConfig(Section):
    """One judge. Several may feed a role; their weights count inside it."""

    kind: str = Field(
        description="dino, dino-patches, clip-image, siglip-image (identity), clip, siglip, pickscore, hps-v2, hps-v3 "
        "(prompt), vlm, remote (either), copy-paste (guard), or package.module:Class, or file.py:function"
    )
    role: Literal["identity", "prompt", "guard"] = Field(
        description="a guard teaches nothing: among the rewards it vetoes by its limit, among the monitors it watches"
    )
    name: str | None = Field(None, description="in logs, tables and figures; null: its kind")
    path: str | None = Field(None, description="hub id or folder of the judge's own model")
    device: str | None = Field(
        None, description="where it works; null: where the policy does. cpu leaves all of an accelerator to the policy"
    )
    weight: float = Field(1.0, ge=0, description="inside its role (method.combine); 0: it only watches")
    limit: float | None = Field(
        None,
        allow_inf_nan=False,
        description="of a guard among the rewards: a picture that scores above it drops out of its group",
    )
    options: dict[str, Any] = Field({}, description="of its kind; docs/rewards.md lists them")
