"""TDW, Time-Aware Dynamic Weighting (arXiv 2510.18263), and the schedules it is compared with.

A schedule is a (T,) tensor indexed by the denoising step t, 0 being the noisiest.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

PUBLISHED_STEPS = 25
"""T of the released recipe, in whose steps the constants below are given."""
EARLY_END, LATE_START = 6, 22
CENTRE, SLOPE = 10, 0.8
EARLY_WEIGHT, LOW_WEIGHT, LATE_WEIGHT = 0.7, 0.3, 0.5

KINDS: Final = ("tdw", "static", "tdw-reversed", "tdw-shuffled", "table")
"""The schedules :func:`step_weights` knows."""


def tdw(steps: int) -> Tensor:
    """The prompt's weight at each step: high, a sigmoid down, then balanced.

    In steps of a 25-step schedule: 0.7 for t < 6, ``0.3 + 0.4*(1 - sigmoid(0.8*(t - 10)))`` up to
    22, 0.5 from there. Another number of steps is mapped there by t * 25 / T, so breakpoints keep
    their place in t/T and T = 25 is the released table itself. The published schedule is not
    continuous: it drops from 0.7 to 0.684 at t = 6 and rises from 0.3 to 0.5 at t = 22.

    Args:
        steps: T, at least 1.

    Returns:
        (T,) float32 on the CPU, in 0.3..0.7.

    Raises:
        ValueError: if ``steps`` is below 1.
    """
    _check_steps(steps)
    # 25*t is a whole number, so the one division lands exactly on whole published steps.
    t = torch.arange(steps, dtype=torch.float64) * PUBLISHED_STEPS / steps
    sliding = LOW_WEIGHT + (EARLY_WEIGHT - LOW_WEIGHT) * (1 - torch.sigmoid(SLOPE * (t - CENTRE)))
    sliding[t < EARLY_END] = EARLY_WEIGHT
    sliding[t >= LATE_START] = LATE_WEIGHT
    return sliding.float()


def tdw_reversed(steps: int) -> Tensor:
    """The prompt's weight with the roles of :func:`tdw` exchanged: identity first.

    The ablation keeps TDW's phases and asks whether their order matters: ``1 - tdw(steps)``, not
    TDW played backwards in time.
    """
    return 1 - tdw(steps)


def static(steps: int, prompt_weight: float, identity_weight: float) -> tuple[Tensor, Tensor]:
    """The same pair of weights at every step, as in naive GRPO. The pair need not add up to 1.

    Args:
        steps: T, at least 1.
        prompt_weight: the prompt's weight.
        identity_weight: the identity's weight.

    Returns:
        Prompt and identity weights, (T,) float32 each.

    Raises:
        ValueError: if ``steps`` is below 1.
    """
    _check_steps(steps)
    return torch.full((steps,), float(prompt_weight)), torch.full((steps,), float(identity_weight))


def table(steps: int, prompt: Sequence[float], identity: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Weights that are given step by step, such as those learned from measured gradients.

    Args:
        steps: T, at least 1.
        prompt: the prompt's T weights, 0 the noisiest step.
        identity: the identity's T weights. The two need not add up to 1.

    Returns:
        Prompt and identity weights, (T,) float32 each.

    Raises:
        ValueError: if one of them does not hold T weights or ``steps`` is below 1.
    """
    _check_steps(steps)
    for role, weights in (("prompt", prompt), ("identity", identity)):
        if len(weights) != steps:
            raise ValueError(f"the table holds {len(weights)} weights of the {role} for {steps} steps")
    return torch.tensor(list(prompt), dtype=torch.float32), torch.tensor(list(identity), dtype=torch.float32)


def step_weights(
    kind: str,
    steps: int,
    *,
    prompt_weight: float = 0.5,
    identity_weight: float = 0.5,
    prompt_table: Sequence[float] = (),
    identity_table: Sequence[float] = (),
) -> tuple[Tensor, Tensor]:
    """Both roles' weights at each denoising step.

    Args:
        kind: "tdw", "static", "tdw-reversed", "tdw-shuffled" or "table". "tdw-shuffled" has the weights of
            "tdw"; it differs in the steps that :func:`shaped_advantages` gets.
        steps: T, at least 1.
        prompt_weight: for "static" alone; "tdw" and its ablations hold their own weights, adding up to 1.
        identity_weight: for "static" alone. 1:1 may be 0.5 and 0.5, the scale of TDW, or 1 and 1.
        prompt_table: for "table" alone, T weights.
        identity_table: for "table" alone, T weights.

    Returns:
        Prompt and identity weights, (T,) float32 each.

    Raises:
        ValueError: if the kind is unknown, ``steps`` is below 1 or a table needed does not hold T weights.
    """
    if kind == "static":
        return static(steps, prompt_weight, identity_weight)
    if kind == "table":
        return table(steps, prompt_table, identity_table)
    if kind in ("tdw", "tdw-shuffled"):
        prompt = tdw(steps)
    elif kind == "tdw-reversed":
        prompt = tdw_reversed(steps)
    else:
        raise ValueError(f"unknown weighting {kind!r}; known: {', '.join(KINDS)}")
    return prompt, 1 - prompt


def shaped_advantages(
    *,
    a_prompt: Tensor,
    a_identity: Tensor,
    bonus: Tensor,
    w_prompt: Tensor,
    w_identity: Tensor,
    steps: Tensor,
    clip: float = 5.0,
) -> Tensor:
    """``A(t) = w_p(t)*A_p + w_id(t)*A_id + B``, clipped.

    By keyword alone, so that the two roles cannot be exchanged by position. The weight is read at
    the value in ``steps``, never at its place in the row: trained steps may be sampled and shuffled.
    Give their own denoising steps; only the ablation "tdw-shuffled" gives others.

    Args:
        a_prompt: (B,) prompt advantages.
        a_identity: (B,) identity advantages.
        bonus: (B,) shaping term.
        w_prompt: (T,) from :func:`step_weights`.
        w_identity: (T,) likewise.
        steps: (B, S); ``steps[b, j]``, 0..T-1, is the denoising step whose weights sample b's j-th
            trained transition has. Floating-point numbers are places between steps (:func:`at_places`).
        clip: bound on the result's magnitude; ``math.inf`` for none.

    Returns:
        (B, S), aligned with ``steps``.

    Raises:
        ValueError: if shapes disagree, ``steps`` is of another type or leaves 0..T-1, or clip <= 0.
    """
    samples = steps.shape[0] if steps.ndim == 2 else -1
    if any(a.shape != (samples,) for a in (a_prompt, a_identity, bonus)):
        raise ValueError("need steps (B, S) and advantages and bonus (B,)")
    if w_prompt.ndim != 1 or w_prompt.shape != w_identity.shape:
        raise ValueError("need the two weights as (T,)")
    if steps.dtype not in (torch.int64, torch.int32, torch.float32, torch.float64):
        raise ValueError(f"steps must hold integers or places between them, not {steps.dtype}")
    # A negative index would silently read the schedule from its end.
    if steps.numel() and not 0 <= int(steps.min()) <= int(steps.max()) < len(w_prompt):
        raise ValueError(f"steps must lie in 0..{len(w_prompt) - 1}")
    if not clip > 0:
        raise ValueError(f"clip must be positive, not {clip}")
    prompt = at_places(w_prompt, steps) * a_prompt[:, None]
    identity = at_places(w_identity, steps) * a_identity[:, None]
    return (prompt + identity + bonus[:, None]).clamp(-clip, clip)


def at_places(values: Tensor, places: Tensor) -> Tensor:
    """Values of a schedule at places between its steps, interpolated linearly.

    Args:
        values: (T,), one for each step or noise level.
        places: any shape, in 0..T-1: t is the value of step t itself, t + 0.5 half-way to that of the next.

    Returns:
        As ``places``.
    """
    values = values.to(places.device)
    before = places.long()
    after = (before + 1).clamp(max=len(values) - 1)
    return torch.lerp(values[before], values[after], (places - before).to(values))


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
