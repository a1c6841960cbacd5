"""How the policy is moved."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from customized_grpo.config.section import Section, SizeOrAuto, TupleOrList


class TrainConfig(Section):
    """How the policy is moved."""

    iterations: int = Field(300, ge=1, description="each draws its groups, scores them and takes its updates")
    updates: int = Field(3, ge=1, description="optimiser steps of one iteration")
    trained_fraction: float = Field(0.6, gt=0, le=1, description="share of the stochastic steps, drawn per image")
    learning_rate: float = Field(2e-5, gt=0, description="of AdamW")
    schedule: Literal["constant", "linear"] = Field("constant", description="linear: the rate falls to 0 over the run")
    betas: TupleOrList[tuple[float, float]] = Field((0.9, 0.999), description="of AdamW, each from 0 to below 1")
    weight_decay: float = Field(1.1e-4, ge=0, description="of AdamW")
    max_gradient_norm: float = Field(1.0, gt=0, description="a longer gradient is cut to it")
    clip_range: float = Field(
        1e-4, gt=0, description="of the ratio about 1; small, since log-densities are means over latent elements"
    )
    clip_range_high: float | None = Field(None, gt=0, description="above a ratio of 1; null: clip_range (DAPO)")
    ratio: Literal["plain", "guard"] = Field(
        "plain", description="guard: normalised, and steps weighed alike (GRPO-Guard, arXiv 2510.22319)"
    )
    kl_weight: float = Field(0.0, ge=0, description="of the KL to the untuned model, added to the loss; 0: none")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of a moving average of the weights, a step; 0: none")
    batch_size: SizeOrAuto = Field(
        4, description="(image, step) pairs of one forward and backward pass; auto: as memory is free"
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
    checkpoint_every: int = Field(10, ge=1, description="iterations between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="how many of the newest stay on the disk")
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
