"""Stochastic denoising steps of an iteration: all of them, or a moving window (MixGRPO, arXiv 2507.21802).

Outside the window the policy takes deterministic Euler steps, which carry no policy gradient. A group with shared
initial noise is one trajectory up to the window and branches there (Flow-GRPO-Fast is a window of one or two steps).
"""

import itertools
import math

import torch

from customized_grpo.config import RolloutConfig
from customized_grpo.utils.noise import generator


def stochastic_steps(rollout: RolloutConfig, seed: int, iteration: int) -> range:
    """Return the stochastic steps of an iteration, among 0 .. steps - 2; the last step is always deterministic.

    A "progressive" window stays `stay` iterations at each position; so does a "decaying" one, but beyond `decay_from` a
    share `exp(-decay * (position - decay_from))` of them, at least one; "random" samples a position each time. At the
    last position the window remains, or begins again if `roll_back`.
    """
    stochastic, window = rollout.steps - 1, rollout.window
    if window is None:
        return range(stochastic)
    positions = range(window.start, stochastic - window.size + 1, window.stride)
    if window.order == "random":
        key = generator(seed, "window", iteration // window.stay)
        start = positions[int(torch.randint(len(positions), (), generator=key))]
        return range(start, start + window.size)
    stays = [window.stay] * len(positions)
    if window.order == "decaying":
        beyond = (max(0, position - window.decay_from) for position in positions)
        stays = [max(1, round(window.stay * math.exp(-window.decay * steps))) for steps in beyond]
    if window.roll_back:
        iteration %= sum(stays)
    ends = itertools.accumulate(stays)
    start = next((position for position, end in zip(positions, ends, strict=True) if iteration < end), positions[-1])
    return range(start, start + window.size)
