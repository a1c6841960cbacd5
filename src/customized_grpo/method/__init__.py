"""The method's own maths, as pure functions on tensors; nothing here knows a model or a reward.

- ``advantages``: group-relative advantages, degenerate groups, sign quadrants, the images that say most.
- ``shaping``: SARS, the reward-shaping term, and its ablations.
- ``weighting``: TDW, the time-aware weights, its ablations, and the advantage of each trained step.
- ``sampling``: noise levels; the dance, flow, CPS and Euler steps; their log-density and KL.
- ``objective``: the clipped surrogate.
- ``forward_process``: objectives that need no trajectories, AWM and DiffusionNFT.
- ``balance``: role weights by constraints (dual ascent), or by the gradient of the hypervolume.
- ``surgery``: PCGrad, of the two roles' gradients.
"""

from customized_grpo.method.advantages import (
    degenerate_groups,
    group_advantages,
    max_variance_subset,
    quadrant_shares,
    role_advantages,
)
from customized_grpo.method.balance import Control, dual_ascent, hypervolume_weights, lagrangian_weights
from customized_grpo.method.forward_process import (
    OBJECTIVES,
    Objective,
    awm_loss,
    matching_error,
    nft_loss,
    noised,
    register_objective,
    velocity_distance,
)
from customized_grpo.method.objective import Surrogate, clipped_surrogate, guarded_log_ratio, guarded_loss
from customized_grpo.method.sampling import (
    SAMPLERS,
    Step,
    StepFunction,
    cps_step,
    dance_step,
    euler_step,
    flow_sigmas,
    flow_step,
    gaussian_kl,
    gaussian_log_density,
    x0_estimate,
)
from customized_grpo.method.shaping import (
    SHAPINGS,
    Shaping,
    annealed,
    bonus_alone,
    harmonic,
    maximum,
    minimum,
    none,
    product,
    sars,
)
from customized_grpo.method.surgery import project_conflicts
from customized_grpo.method.weighting import (
    at_places,
    shaped_advantages,
    static,
    step_weights,
    tdw,
    tdw_reversed,
)

__all__ = [
    "OBJECTIVES",
    "SAMPLERS",
    "SHAPINGS",
    "Control",
    "Objective",
    "Shaping",
    "Step",
    "StepFunction",
    "Surrogate",
    "annealed",
    "at_places",
    "awm_loss",
    "bonus_alone",
    "clipped_surrogate",
    "cps_step",
    "dance_step",
    "degenerate_groups",
    "dual_ascent",
    "euler_step",
    "flow_sigmas",
    "flow_step",
    "gaussian_kl",
    "gaussian_log_density",
    "group_advantages",
    "guarded_log_ratio",
    "guarded_loss",
    "harmonic",
    "hypervolume_weights",
    "lagrangian_weights",
    "matching_error",
    "max_variance_subset",
    "maximum",
    "minimum",
    "nft_loss",
    "noised",
    "none",
    "product",
    "project_conflicts",
    "quadrant_shares",
    "register_objective",
    "role_advantages",
    "sars",
    "shaped_advantages",
    "static",
    "step_weights",
    "tdw",
    "tdw_reversed",
    "velocity_distance",
    "x0_estimate",
]
