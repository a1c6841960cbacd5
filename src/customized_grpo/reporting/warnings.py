"""Warnings about a run's curves: pure functions of its records, with each threshold as a constant.

They look for known failures of reinforcement learning of generators. A run without a warning is not necessarily good.
Records may begin with one of iteration 0, the evaluation of the base model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Literal

from customized_grpo.config import Config, DataConfig, RewardConfig
from customized_grpo.data import WORLDS
from customized_grpo.protocols import ROLES, Role
from customized_grpo.reporting.collect import Records, Series, series
from customized_grpo.trainer.credit import reward_name
from customized_grpo.trainer.scoring import CONSTANT
from customized_grpo.utils.terminal import finite, percent

PARTED = 2.0  #: percent of its first value that a score must rise, and another fall
PASTED = 5.0  #: points of 100 that a guard must rise
COLLAPSED = 2 / 3  #: share of the first diversity below which a warning is given
DEAD = 0.5  #: share of groups without signal
VETOED = 0.5  #: share of images that guards have vetoed
EXPLODED = 10.0  #: multiple of the median of the whole run
KL_LIMIT = 1.0  #: nats per latent element, where no image resembles one of the base model
PINNED = 0.75  #: share of the highest possible clip fraction
LEAST = 6  #: iterations below which a curve has no trend

Kind = Literal[
    "constant reward", "hacking", "competition", "copy-paste", "diversity", "dead groups", "vetoes", "KL", "clipping",
    "not finite", "moving average", "not held out",
]  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One warning: observation, the iteration where it began if there is one, remedy, and its role or score."""

    kind: Kind
    message: str
    iteration: int | None
    remedy: str
    about: str = ""


def find_warnings(config: Config, records: Records) -> list[Finding]:
    """Return all warnings of a run, the most serious kinds first."""
    rewards = {role: _evaluated(config.rewards, role, records) for role in ROLES}
    monitors = {role: _evaluated(config.evaluation.monitors, role, records) for role in ROLES}
    guards = _evaluated([*config.rewards, *config.evaluation.monitors], "guard", records)
    found: list[Finding | None] = [
        not_finite(records),
        *(constant_reward(config.rewards, role, records) for role in ROLES),
        *(reward_hacking(role, rewards[role].values(), monitors[role].values()) for role in ROLES),
        competition({role: rewards[role].values() for role in ROLES}),
        *(copy_paste(name, values) for name, values in guards.items()),
        diversity_collapse(series(records, "diversity")),
        *(dead_groups(role, series(records, f"share/no_signal_{role}")) for role in ROLES),
        many_vetoes(series(records, "share/vetoed")),
        kl_explosion(series(records, "kl")),
        coming_apart(series(records, "old_distance")),
        clip_pinned(series(records, "clip_fraction"), config.train.updates),
        not_held_out(config.data, config.evaluation.data),
    ]
    return [finding for finding in found if finding is not None]


def notes_of(config: Config, findings: Iterable[Finding]) -> dict[str, str]:
    """Return a short note by the score's name: a score that parted from its independent monitors, a guard that rose."""
    notes: dict[str, str] = {}
    for finding in findings:
        since = "" if finding.iteration is None else f" at iteration {finding.iteration}"
        if finding.kind == "hacking":
            rewards = [*config.rewards, *config.evaluation.monitors]
            notes |= {reward_name(reward): f"parted{since}" for reward in rewards if reward.role == finding.about}
        elif finding.kind == "copy-paste":
            notes[finding.about] = f"risen{since}"
    return notes


def not_held_out(data: DataConfig, evaluation: DataConfig) -> Finding | None:
    """Warn if the evaluation uses the pairs of the training."""
    if data.path is None or evaluation.path is None or data.path in WORLDS:
        return None
    if Path(data.path).resolve() != Path(evaluation.path).resolve():  # the same file in other words
        return None
    text = f"The held-out scores are of {data.path}, which is also the training data: they do not show generalization."
    return Finding("not held out", text, None, "Set evaluation.data.path to pairs that are not used for training.")


def not_finite(records: Records) -> Finding | None:
    """Warn of a loss, gradient norm or KL that was infinite or not a number, which is written as null."""
    for record in records:
        for key in ("loss", "gradient_norm", "kl"):
            if key in record and not finite(record[key]):
                text = f"The {key.replace('_', ' ')} is not a number at iteration {record['iteration']}."
                return Finding("not finite", text, record["iteration"], "Lower train.learning_rate or rollout.eta.")
    return None


def constant_reward(rewards: Sequence[RewardConfig], role: Role, records: Records) -> Finding | None:
    """Warn if a reward had one mean in the first CONSTANT iterations, and does not vary in groups as the only one."""
    trained = [reward_name(one) for one in rewards if one.role == role and one.weight > 0]
    for name in trained:
        means = [value for iteration, value in series(records, f"reward/{name}/mean") if 0 < iteration <= CONSTANT]
        spread = [value for iteration, value in series(records, f"{role}/std") if 0 < iteration <= CONSTANT]
        if len(means) == CONSTANT and len(set(means)) == 1 and not (len(trained) == 1 and any(spread)):
            text = f"The {role} reward {name} was {means[0]:.4g} for all images of the first {CONSTANT} iterations."
            return Finding("constant reward", text, 1, f"Check {name} with cgrpo score: it teaches nothing.", name)
    return None


def reward_hacking(role: Role, rewards: Iterable[Series], monitors: Iterable[Series]) -> Finding | None:
    """Warn if held-out rewards of a role rise and its independent monitors fall, by PARTED percent from their peak."""
    reward, monitor = _mean_change(rewards), _mean_change(monitors)
    common = sorted(reward.keys() & monitor.keys())
    if len(common) < 3:
        return None
    parting = max(common, key=lambda iteration: (monitor[iteration], iteration))
    after = [iteration for iteration in common if iteration > parting][-2:]
    if len(after) < 2:
        return None
    risen = fmean(reward[i] for i in after) - reward[parting]
    fallen = monitor[parting] - fmean(monitor[i] for i in after)
    if risen < PARTED or fallen < PARTED:
        return None
    text = (
        f"Since iteration {parting} the {role} reward has risen by {risen:.1f}%, while the "
        f"independent {role} monitors have fallen by {fallen:.1f}%: the policy may be exploiting errors of the reward."
    )
    remedy = f"Use the checkpoint nearest to iteration {parting}, or add a second {role} reward."
    return Finding("hacking", text, parting, remedy, role)


def competition(rewards: Mapping[Role, Iterable[Series]]) -> Finding | None:
    """Warn if one role's held-out reward has risen and the other's fallen, by PARTED percent each, since the first."""
    changes = {role: _mean_change(values) for role, values in rewards.items()}
    late = {role: fmean(list(change.values())[-2:]) for role, change in changes.items() if len(change) > 2}
    if len(late) < 2 or max(late.values()) < PARTED or min(late.values()) > -PARTED:
        return None
    winner, loser = max(late, key=lambda role: late[role]), min(late, key=lambda role: late[role])
    text = f"Held-out {winner} has risen by {late[winner]:.1f}% while {loser} has fallen by {-late[loser]:.1f}%."
    since = max(changes[loser], key=lambda iteration: (changes[loser][iteration], iteration))
    remedy = (
        f"Weight {loser} more: method.weighting=tdw, or method.combine=advantages and a weight above 1 of its reward."
    )
    return Finding("competition", text, since, remedy)


def copy_paste(name: str, guard: Series) -> Finding | None:
    """Warn if a guard has risen by PASTED points since the first, in the mean of the last two evaluations."""
    if len(guard) < 3 or (risen := _mean(guard[-2:]) - guard[0][1]) < PASTED:
        return None
    since = _since(guard, lambda value: value >= guard[0][1] + PASTED, window=1)
    text = f"The guard {name} has risen by {risen:.1f} points, from {guard[0][1]:.1f}: images copy their reference."
    return Finding("copy-paste", text, since, "Weight the prompt more, or give masks with the references.", name)


def diversity_collapse(diversity: Series) -> Finding | None:
    """Warn if images of a group differ by a third less than at first, in means of a fifth of the run."""
    if len(diversity) < LEAST:
        return None
    early = _mean(diversity[: _fifth(diversity)])
    text = "The images of a group differ by {:.2%} of full contrast; " + f"at first it was {early:.2%}."
    remedy = "Raise rollout.eta, or lower train.learning_rate or set train.kl_weight."
    return _late("diversity", diversity, lambda value: value <= COLLAPSED * early, text, remedy)


def dead_groups(role: Role, shares: Series) -> Finding | None:
    """Warn if DEAD of the groups or more have no signal in a role, in the mean of the last fifth of the run."""
    text = f"In {{:.0%}} of the groups all images have the same {role} score, so they give no signal for {role}."
    remedy = f"Use a finer {role} reward, a larger rollout.group_size or eta."
    return _late("dead groups", shares, lambda value: value >= DEAD, text, remedy, role)


def many_vetoes(shares: Series) -> Finding | None:
    """Warn if guards have vetoed VETOED of the images or more, in the mean of the last fifth of the run."""
    text = "Guards veto {:.0%} of the images: the policy learns from the others only."
    remedy = "Raise the guard's limit, weight the prompt more, or give masks."
    return _late("vetoes", shares, lambda value: value >= VETOED, text, remedy)


def clip_pinned(fractions: Series, updates: int) -> Finding | None:
    """Warn if PINNED of the ratios that can be clipped are, in the last fifth of the run (not an update's first)."""
    if updates < 2:
        return None
    most = (updates - 1) / updates
    text = f"{{:.0%}} of the ratios are clipped, of at most {most:.0%}: most of each iteration is discarded."
    remedy = "Lower train.learning_rate or train.updates, or widen train.clip_range."
    return _late("clipping", fractions, lambda value: value >= PINNED * most, text, remedy)


def kl_explosion(kl: Series) -> Finding | None:
    """Warn if the KL is above KL_LIMIT or EXPLODED times its median; growth by the iteration's cube is not reported."""
    text = "The KL to the base model is {:.2g} nats per element; its median over the run is {:.2g}."
    return _explosion("KL", kl, KL_LIMIT, text, "Lower train.learning_rate, or set train.kl_weight.")


def coming_apart(distance: Series) -> Finding | None:
    """Warn if the distance from the policy's moving average is above EXPLODED times its median."""
    text = "The distance from the policy's moving average is {:.2g}; its median over the run is {:.2g}."
    remedy = "Lower train.learning_rate, raise forward.pull or forward.old_decay, or set method.objective=nft."
    return _explosion("moving average", distance, float("inf"), text, remedy)


def _explosion(kind: Kind, curve: Series, limit: float, text: str, remedy: str) -> Finding | None:
    if len(curve) < LEAST:
        return None
    usual = median(value for _, value in curve)
    bound = min(limit, EXPLODED * usual)
    if (late := _mean(curve[-3:])) <= bound:
        return None
    return Finding(kind, text.format(late, usual), _since(curve, lambda value: value > bound, window=1), remedy)


def _evaluated(rewards: Sequence[RewardConfig], role: str, records: Records) -> dict[str, Series]:
    names = [reward_name(reward) for reward in rewards if reward.role == role]
    found = {name: series(records, f"evaluation/{name}/mean") for name in names}
    return {name: values for name, values in found.items() if values}


def _mean_change(curves: Iterable[Series]) -> dict[int, float]:
    """Return, by iteration, the mean change of several scores since their first, in percent.

    If the first value is near 0 the change is in percent of the largest, or in points if that is small too.
    """
    changes = []
    for curve in curves:
        first, largest = curve[0][1], max(abs(value) for _, value in curve)
        whole = abs(first) if all(percent(first, value) is not None for _, value in curve) else max(largest, 100.0)
        changes.append({iteration: 100 * (value - first) / whole for iteration, value in curve})
    common = set.intersection(*map(set, changes)) if changes else set()
    return {iteration: fmean(change[iteration] for change in changes) for iteration in sorted(common)}


def _mean(values: Series) -> float:
    return fmean(value for _, value in values)


def _fifth(values: Series) -> int:
    return max(3, len(values) // 5)


def _late(
    kind: Kind, values: Series, bad: Callable[[float], bool], text: str, remedy: str, about: str = ""
) -> Finding | None:
    """Return a finding if the mean of the last fifth of a run is bad; `text` has a place for that mean."""
    if len(values) < LEAST:
        return None
    width = _fifth(values)
    late = _mean(values[-width:])
    return Finding(kind, text.format(late), _since(values, bad, width), remedy, about) if bad(late) else None


def _since(values: Series, holds: Callable[[float], bool], window: int) -> int | None:
    """Return the first iteration from which the mean of `window` values holds up to the end."""
    first = None
    for i in range(len(values) - 1, window - 2, -1):
        if not holds(_mean(values[i + 1 - window : i + 1])):
            break
        first = values[i + 1 - window][0]
    return first
