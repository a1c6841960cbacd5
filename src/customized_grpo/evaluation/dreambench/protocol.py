"""Evaluation protocols: a YAML file of metrics and numbers, so that any two systems are measured alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from pydantic import Field, model_validator

from customized_grpo.config import ConfigError, RewardConfig
from customized_grpo.config.reading import read_section
from customized_grpo.config.section import Section
from customized_grpo.rewards import default_path
from customized_grpo.utils.hub import resolve

_FOLDER = Path(__file__).parent
PROTOCOLS = ("published", "embedded")


class Metric(Section):
    """One scorer. Its kinds, paths and options are those of the rewards."""

    name: str
    kind: str
    role: Literal["identity", "prompt", "guard"]
    path: str | None = None
    options: dict[str, Any] = Field({})
    against: Literal["photos", "shown", "others"] = "photos"
    """For identity: compare with all photos of each subject, or with those that the model was shown. `others` gives 100
    minus the similarity to the other images of the prompt.
    """
    only_if: Literal["masks", "at-hand"] | None = None
    """Skip the metric if the photos have no masks, or if its model is not on this machine."""

    def reward(self) -> RewardConfig:
        """Return the settings of the reward that computes the metric."""
        return RewardConfig(kind=self.kind, role=self.role, name=self.name, path=self.path, options=self.options)


class EvaluationProtocol(Section):
    """Content of a protocol's YAML file."""

    title: str
    images: int = Field(4, ge=1)
    """Images per prompt."""
    steps: int = Field(25, ge=1)
    """Steps of deterministic Euler sampling."""
    seed: int = Field(0, ge=0)
    """Seed of the initial noise."""
    metrics: list[Metric] = Field(min_length=1)
    diversity: str | None = None
    """Metric of identity for diversity: 100 minus the similarity of a prompt's images to each other."""
    identity_axis: list[str] = Field([])
    """Metrics for the plane's identity axis; the first measured is used."""
    prompt_axis: list[str] = Field([])
    """Metrics for the plane's prompt axis; the first measured is used."""

    @model_validator(mode="after")
    def _consistent(self) -> EvaluationProtocol:
        roles = {metric.name: metric.role for metric in self.metrics}
        if len(roles) < len(self.metrics) or f"diversity ({self.diversity})" in roles:
            raise ValueError("metrics: two have one name; give each a name of its own")
        if self.diversity is not None and roles.get(self.diversity) != "identity":
            raise ValueError(f"diversity: {self.diversity!r} is no metric of identity; name one")
        for key, names in (("identity_axis", self.identity_axis), ("prompt_axis", self.prompt_axis)):
            if unknown := [name for name in names if name not in roles]:
                raise ValueError(f"{key}: no metric is named {unknown[0]!r}; metrics are {', '.join(roles)}")
        return self

    def measured(self, masked: bool) -> tuple[dict[str, Metric], dict[str, str]]:
        """Return the metrics by name, diversity included, and the reasons why others are skipped, by name."""
        metrics, skipped = {metric.name: metric for metric in self.metrics}, dict[str, str]()
        for metric in self.metrics:
            if metric.only_if == "masks" and not masked:
                skipped[metric.name] = "the photos have no masks, and it names no segmenter"
            if metric.only_if == "at-hand" and not _at_hand(metric.path or default_path(metric.kind)):
                skipped[metric.name] = "its model is not on this machine"
        metrics = {name: metric for name, metric in metrics.items() if name not in skipped}
        if self.diversity is not None:
            name = f"diversity ({self.diversity})"
            if self.images < 2:
                skipped[name] = "one image per prompt has nothing to differ from"
            elif self.diversity in skipped:
                skipped[name] = f"{self.diversity} is skipped"
            else:
                metrics[name] = metrics[self.diversity].model_copy(update={"name": name, "against": "others"})
        return metrics, skipped

    def axes(self, measured: list[str]) -> tuple[str, str] | None:
        """Return the scores (identity, prompt) that span the plane, or None if one is not among those measured."""
        first = [next((n for n in names if n in measured), None) for names in (self.identity_axis, self.prompt_axis)]
        return None if first[0] is None or first[1] is None else (first[0], first[1])


def load_protocol(name: str, **numbers: int | None) -> EvaluationProtocol:
    """Load a shipped protocol or a YAML file, with other numbers if they are given. Raises ConfigError."""
    path = _FOLDER / "protocols" / f"{name}.yaml" if name in PROTOCOLS else Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(f"--protocol {name}: no such file; give {', '.join(PROTOCOLS)} or a YAML file")
    given = {key: value for key, value in numbers.items() if value is not None}
    return read_section(path, EvaluationProtocol).model_copy(update=given)


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


class Published(Section):
    """Published systems on a plane of `identity` and `prompt`, on the scales of their `source`."""

    source: str
    caveat: str
    identity: str
    prompt: str
    points: dict[str, tuple[float, float]]


def published() -> Published:
    """Return the published points of DreamBench with single subjects."""
    return Published.model_validate_json((_FOLDER / "published.json").read_text(encoding="utf-8"))
