"""Configurations of the embedded model, whose recipe gives what a test does not name."""

from __future__ import annotations

from typing import Any, TypeVar

from customized_grpo.config.loading import load_config
from customized_grpo.config.section import Section

S = TypeVar("S", bound=Section)
_RECIPE = load_config()


def embedded(section: type[S], **changes: Any) -> S:
    """That section of the embedded recipe, or all of it for `Config`, with changes by key."""
    found = [part for part in (_RECIPE, *vars(_RECIPE).values()) if type(part) is section]
    return section(**{**vars(found[0]), **changes})
