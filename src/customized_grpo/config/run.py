"""A run: all sections, and what must agree between them."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from customized_grpo.config.data import DataConfig
from customized_grpo.config.evaluation import EvaluationConfig
from customized_grpo.config.method import MethodConfig
from customized_grpo.config.policy import PolicyConfig
from customized_grpo.config.presets import fill, preset_of
from customized_grpo.config.rewards import RewardConfig
from customized_grpo.config.rollout import RolloutConfig
from customized_grpo.config.section import Section
from customized_grpo.config.train import TrainConfig

#: Rises when a setting changes its name or meaning.
VERSION = 1


class Config(Section):
    """A run. The defaults are the paper's, on FLUX.1-Kontext-dev."""

    version: int = Field(VERSION, description="of the settings themselves; a run that another one wrote is refused")
    seed: int = Field(0, ge=0, description="of all that is drawn by chance: noise, the order of pairs, trained steps")
    policy: PolicyConfig = PolicyConfig()
    data: DataConfig = DataConfig()
    rewards: list[RewardConfig] = Field(
        [
            RewardConfig(kind="dino", role="identity", name="identity", path="facebook/dinov2-base"),
            RewardConfig(kind="clip", role="prompt", name="prompt", path="openai/clip-vit-large-patch14"),
        ],
        description="judges that are trained on: one of identity and one of prompt at least",
    )
    method: MethodConfig = MethodConfig()
    rollout: RolloutConfig = RolloutConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        """Give the keys that are not named the values of the model's preset."""
        return fill(values, preset_of(values.get("policy", {})).values) if isinstance(values, dict) else values

    @field_validator("version")
    @classmethod
    def _known(cls, version: int) -> int:
        if version != VERSION:
            raise ValueError(
                f"these are settings of another version of this package, which reads {VERSION}; use the one that "
                f"wrote them (a run's starts.jsonl says which), or set what `cgrpo info` lists and version: {VERSION}"
            )
        return version

    @field_validator("evaluation")
    @classmethod
    def _follows_data(cls, evaluation: EvaluationConfig, info: ValidationInfo) -> EvaluationConfig:
        """Evaluate on the data that is trained on (of the world: other pairs of it) unless other data are named."""
        data, held_out = info.data.get("data"), evaluation.data
        if data is None or held_out.path is not None:
            return evaluation
        followed = held_out.model_copy(update={"path": data.path, "root": held_out.root or data.root})
        return evaluation.model_copy(update={"data": followed})

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
