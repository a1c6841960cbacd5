"""What is drawn and measured: one YAML file, so that any two systems are measured alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from pydantic import Field, model_validator

from customized_grpo.config import ConfigError, RewardConfig
from customized_grpo.config.typed import Section, read_section
from customized_grpo.rewards import default_path
from customized_grpo.utils.hub import resolve

_SHIPPED = Path(__file__).parent / "protocols"
PROTOCOLS = ("published", "embedded")


class Metric(Section):
    """One judge. Its kinds, paths and options are those of the rewards."""

    name: str
    kind: str
    role: Literal["identity", "prompt", "guard"]
    path: str | None = None
    options: dict[str, Any] = Field({})
    against: Literal["photos", "shown"] = Field(
        "photos", description="of identity: the mean over all photos of each subject, or only those the model saw"
    )
    only_if: Literal["masks", "at-hand"] | None = Field(
        None, description="left out where the photos have no masks; where its model is not on this machine"
    )

    def reward(self) -> RewardConfig:
        return RewardConfig(kind=self.kind, role=self.role, name=self.name, path=self.path, options=self.options)

    def why_not(self, masked: bool) -> str | None:
        """Why it is left out, or None. `masked`: whether all photos have masks."""
        if self.only_if == "masks" and not masked:
            return "the photos have no masks, and it names no segmenter"
        if self.only_if == "at-hand" and not _at_hand(self.path or default_path(self.kind)):
            return "its model is not on this machine"
        return None


class EvaluationProtocol(Section):
    """A protocol's YAML file."""

    title: str
    images: int = Field(4, ge=1, description="pictures of each subject and prompt")
    steps: int = Field(25, ge=1, description="of deterministic Euler sampling")
    seed: int = Field(0, ge=0)
    metrics: list[Metric] = Field(min_length=1)
    diversity: str | None = Field(
        None, description="a metric of identity: 100 less the mean similarity of a group's pictures to one another"
    )
    identity_axis: list[str] = Field([], description="metrics of the plane: the first that is measured")
    prompt_axis: list[str] = Field([], description="the same")

    @model_validator(mode="after")
    def _consistent(self) -> EvaluationProtocol:
        roles = {metric.name: metric.role for metric in self.metrics}
        if len(roles) < len(self.metrics) or self.diversity_name in roles:
            raise ValueError("metrics: two have one name; give each a name of its own")
        if self.diversity is not None and roles.get(self.diversity) != "identity":
            raise ValueError(f"diversity: {self.diversity!r} is no metric of identity; name one")
        for key, names in (("identity_axis", self.identity_axis), ("prompt_axis", self.prompt_axis)):
            if unknown := [name for name in names if name not in roles]:
                raise ValueError(f"{key}: no metric is named {unknown[0]!r}; metrics are {', '.join(roles)}")
        return self

    @property
    def diversity_name(self) -> str:
        """The name under which diversity is told."""
        return f"diversity ({self.diversity})"

    def axes(self, measured: list[str]) -> tuple[str, str] | None:
        """(identity, prompt): the scores that span the plane; None where one is not among those measured."""
        first = [next((n for n in names if n in measured), None) for names in (self.identity_axis, self.prompt_axis)]
        return None if first[0] is None or first[1] is None else (first[0], first[1])


def load_protocol(
    name: str, *, images: int | None = None, steps: int | None = None, seed: int | None = None
) -> EvaluationProtocol:
    """The shipped protocol of that name, or that of a YAML file, with other numbers where they are given.

    Raises ConfigError, one line for each problem.
    """
    path = _SHIPPED / f"{name}.yaml" if name in PROTOCOLS else Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(f"--protocol {name}: no such file; give {', '.join(PROTOCOLS)} or a YAML file")
    given = {"images": images, "steps": steps, "seed": seed}
    return read_section(path, EvaluationProtocol).model_copy(
        update={key: value for key, value in given.items() if value is not None}
    )


def _at_hand(path: str | None) -> bool:
    if path is None:
        return False
    found = resolve(path)
    if isinstance(found, str):
        try:
            found = Path(snapshot_download(found, local_files_only=True))
        except (LocalEntryNotFoundError, OSError, ValueError):
            return False
    return any(found.glob("*.safetensors"))
