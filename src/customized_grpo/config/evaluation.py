"""What is drawn and scored before and after training."""

from __future__ import annotations

from pydantic import Field

from customized_grpo.config.data import DataConfig
from customized_grpo.config.presets import DEFAULT
from customized_grpo.config.rewards import RewardConfig
from customized_grpo.config.section import Section


class EvaluationConfig(Section):
    """What is drawn and scored before and after training."""

    data: DataConfig = Field(
        DataConfig(split="held-out", size=96, seed=1), description="its path is data.path where it is not named"
    )
    steps: int = Field(DEFAULT["evaluation.steps"], ge=1, description="of deterministic Euler sampling")
    images: int = Field(1, ge=1, description="images of each pair")
    seed: int = Field(0, description="of the noise that its pictures start from")
    monitors: list[RewardConfig] = Field(
        [RewardConfig(kind="copy-paste", role="guard", name="copy-paste")],
        description="judges that are never optimised; entries as those of rewards",
    )
