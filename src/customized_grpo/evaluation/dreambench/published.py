"""Figures that others published, to be shown beside measured ones and never mixed with them."""

from __future__ import annotations

from importlib.resources import files

from customized_grpo.config.typed import Section


class Published(Section):
    """Systems on a plane of `identity` and `prompt`, on the scales of their `source`; `caveat` goes with them."""

    source: str
    caveat: str
    identity: str
    prompt: str
    points: dict[str, tuple[float, float]]


def published() -> Published:
    """Those of DreamBench, single subjects, that the package holds."""
    text = (files("customized_grpo.evaluation.dreambench") / "published.json").read_text(encoding="utf-8")
    return Published.model_validate_json(text)
