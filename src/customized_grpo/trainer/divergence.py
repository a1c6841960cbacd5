"""Signs that a policy cannot be trained further, each with its remedy."""

import math
from pathlib import Path


class DivergenceError(ValueError):
    """A policy that cannot be trained further; the message is one line with the numbers and the remedy."""


def check_loss(loss: float, iteration: int, run: Path) -> None:
    """Raise DivergenceError if an update's loss is not finite."""
    if not math.isfinite(loss):
        problem = f"the loss is {loss}, not a finite number"
        raise _error(iteration, problem, "lower train.learning_rate, or set policy.dtype to float32,", run)


def check_skipped(skipped: int, limit: int, updates: int, iteration: int, run: Path) -> None:
    """Raise DivergenceError if more than `limit` updates in a row, or all of the run's, had no finite gradient."""
    if skipped > limit or skipped == updates:
        allowed = f"more than train.max_skipped={limit} allows" if skipped > limit else "all of the run's"
        problem = f"{skipped} updates in a row had a gradient that is not finite, {allowed}"
        raise _error(iteration, problem, "lower train.learning_rate, or set policy.dtype to float32,", run)


def check_drift(drift: float, limit: float | None, iteration: int, run: Path) -> None:
    """Raise DivergenceError if the policy's `drift`, from `Updater.probe`, is above `limit` or not finite.

    Drift is the most reliable sign of a step that was too large: the loss vanishes once a group's images are noise
    alike, gradients are clipped, and the norms inside a transformer bound its output, so that the KL at a learning
    rate of 1000 is no larger than at 0.1.
    """
    if not (math.isfinite(drift) and (limit is None or drift <= limit)):
        allowed = f"more than train.max_drift={limit:g} allows" if math.isfinite(drift) else "not a finite number"
        problem = f"the velocity's drift from the base model is {drift:.3g}, {allowed}"
        raise _error(iteration, problem, "lower train.learning_rate", run)


def _error(iteration: int, problem: str, remedy: str, run: Path) -> DivergenceError:
    return DivergenceError(
        f"iteration {iteration}: {problem}; {remedy} in {run / 'config.yaml'}, then resume from the last checkpoint "
        f"with --resume {run} --allow-changes"
    )
