"""The pictures of a run, each one function that writes one PNG.

- ``grids``: images side by side, with their prompts.
- ``curves``: a training over its iterations.
- ``comparison``: several ways of training side by side.
- ``plane``: models on the plane of identity and prompt.
- ``weights``: the two weights over the denoising steps.
- ``canvas``: the palette and the look that they share.
"""

from customized_grpo.figures.canvas import FigureError
from customized_grpo.figures.curves import training_curves
from customized_grpo.figures.grids import Picture, image_grid
from customized_grpo.figures.plane import Interval, identity_prompt_plane, planes_side_by_side
from customized_grpo.figures.weights import schedule

__all__ = [
    "FigureError",
    "Interval",
    "Picture",
    "identity_prompt_plane",
    "image_grid",
    "planes_side_by_side",
    "schedule",
    "training_curves",
]
