"""Where pairs come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from customized_grpo.config.section import PathOrText, Section


class DataConfig(Section):
    """Where pairs come from."""

    path: str | None = Field(
        None,
        description="A .jsonl file, a SynCD-style .json, a DreamBench folder, or the built-in world or "
        "world-recoloured. Training needs one.",
    )
    split: Literal["train", "held-out"] = Field(
        "train", description="of the built-in world: the subjects and prompts to train on, or those that are kept apart"
    )
    size: int | None = Field(
        None, ge=1, description="pairs of the built-in world (null: 4096), or to take of a file (null: all)"
    )
    seed: int = Field(0, ge=0, description="of the built-in world: other pairs")
    root: PathOrText | None = Field(
        None, description="folder that the file's relative paths start from; its own where none"
    )
