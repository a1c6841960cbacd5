"""Which denoising steps of an iteration are stochastic: all of them, or a window that moves (MixGRPO).

Outside the window the policy takes deterministic Euler steps, which carry no policy gradient. A group that
shares its initial noise is one trajectory up to the window and branches there (Flow-GRPO-Fast is a window
of one or two steps).
"""

from __future__ import annotations

import math

import torch

from customized_grpo.config import RolloutConfig
from customized_grpo.utils.noise import generator


def stochastic_steps(rollout: RolloutConfig, seed: int, iteration: int) -> range:
    """The stochastic steps of an iteration, among 0 .. T - 2; a function of its arguments alone.

    The last step, to the clean image, is never one of them. Without `rollout.window` all others are. Orders of a
    window over its positions (MixGRPO, arXiv 2507.21802, section 3.2): "progressive" stays `stay` iterations at each
    and moves on by `stride`; "decaying" likewise, but beyond position `decay_from` it stays a share
    `exp(-decay * (position - decay_from))` of them, one at least; "random" draws a position for every `stay`
    iterations. At the last position it remains, or, if `roll_back`, begins again.
    """
    stochastic = rollout.steps - 1
    window = rollout.window
    if window is None:
        return range(stochastic)
    positions = range(window.start, stochastic - window.size + 1, window.stride)
    if window.order == "random":
        turn = iteration // window.stay
        place = int(torch.randint(len(positions), (), generator=generator(seed, "window", turn)))
    else:
        place = _place(
            [_stay(window.order, window.stay, window.decay, position - window.decay_from) for position in positions],
            iteration,
            window.roll_back,
        )
    return range(positions[place], positions[place] + window.size)


def _stay(order: str, stay: int, decay: float, beyond: int) -> int:
    if order == "progressive" or beyond <= 0:
        return stay
    return max(1, round(stay * math.exp(-decay * beyond)))


def _place(stays: list[int], iteration: int, roll_back: bool) -> int:
    """The place in `stays` at which an iteration falls."""
    if roll_back:
        iteration %= sum(stays)
    for place, stay in enumerate(stays):
        if iteration < stay:
            return place
        iteration -= stay
    return len(stays) - 1
