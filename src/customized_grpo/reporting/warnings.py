"""What in a run's curves should worry a reader: pure functions of its records, each threshold a constant here.

They look for what is known to go wrong in reinforcement learning of generators; a run without a finding is not
thereby a good one. Records may begin with one of iteration 0, the evaluation of the base model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from customized_grpo.config import Config, DataConfig, RewardConfig
from customized_grpo.data import WORLDS
from customized_grpo.protocols import ROLES, Role
from customized_grpo.reporting.series import Records, Series, changes_in_percent, finite, mean, series
from customized_grpo.trainer.credit import reward_name

PARTED = 2.0  #: percent of its first value that a score must rise, and its rival fall, to have parted
PASTED = 5.0  #: points of 100 that a guard must rise
COLLAPSED = 0.5  #: share of the first diversity under which it has collapsed
DEAD = 0.5  #: share of groups without signal
VETOED = 0.5  #: share of pictures that guards have vetoed
EXPLODED = 10.0  #: times the median of the whole run
KL_LIMIT = 1.0  #: nats per latent element, where no picture is what the base model would draw
PINNED = 0.75  #: share of the clip fraction that is possible at all
LEAST = 6  #: iterations below which nothing is said of a curve's course

Kind = Literal[
    "hacking", "competition", "copy-paste", "diversity", "dead groups", "vetoes", "KL", "clipping", "not finite",
    "not held out",
]  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One warning: what is seen, since which iteration (None: no single one), what may help, and of what it is."""

    kind: Kind
    told: str
    iteration: int | None
    remedy: str
    about: str = ""  #: the role or the score, where a kind can be found of several


def find_warnings(config: Config, records: Records) -> list[Finding]:
    """All findings of a run, the gravest kinds first."""
    rewards = {role: _evaluated(config.rewards, role, records) for role in ROLES}
    monitors = {role: _evaluated(config.evaluation.monitors, role, records) for role in ROLES}
    guards = _evaluated([*config.rewards, *config.evaluation.monitors], "guard", records)
    found: list[Finding | None] = [
        not_finite(records),
        *(reward_hacking(role, rewards[role].values(), monitors[role].values()) for role in ROLES),
        competition({role: rewards[role].values() for role in ROLES}),
        *(copy_paste(name, values) for name, values in guards.items()),
        diversity_collapse(series(records, "diversity")),
        *(dead_groups(role, series(records, f"share/no_signal_{role}")) for role in ROLES),
        many_vetoes(series(records, "share/vetoed")),
        kl_explosion(series(records, "kl")),
        clip_pinned(series(records, "clip_fraction"), config.train.updates),
        not_held_out(config.data, config.evaluation.data),
    ]
    return [finding for finding in found if finding is not None]


def not_held_out(data: DataConfig, evaluation: DataConfig) -> Finding | None:
    """The file or folder that is trained on is the one that scores are told of."""
    if data.path in WORLDS or data.path != evaluation.path:
        return None
    told = f"The scores called held-out are of {data.path}, which is trained on: they say nothing of other subjects."
    return Finding("not held out", told, None, "Set evaluation.data.path to pairs that are not trained on.")


def notes_of(config: Config, findings: Iterable[Finding]) -> dict[str, str]:
    """By the score's name a few words, where it has parted from the independent judges of its role, or is a guard that
    has risen; with the iteration since when."""
    notes: dict[str, str] = {}
    for finding in findings:
        since = "" if finding.iteration is None else f" at iteration {finding.iteration}"
        if finding.kind == "hacking":
            judges = [*config.rewards, *config.evaluation.monitors]
            notes |= {reward_name(judge): f"parted{since}" for judge in judges if judge.role == finding.about}
        elif finding.kind == "copy-paste":
            notes[finding.about] = f"risen{since}"
    return notes


def not_finite(records: Records) -> Finding | None:
    """A loss, gradient norm or KL that was written as null: it was infinite or not a number."""
    for record in records:
        for key in ("loss", "gradient_norm", "kl"):
            if key in record and not finite(record[key]):
                told = f"The {key.replace('_', ' ')} is not a number at iteration {record['iteration']}."
                return Finding("not finite", told, record["iteration"], "Lower train.learning_rate or rollout.eta.")
    return None


def reward_hacking(role: Role, rewards: Iterable[Series], monitors: Iterable[Series]) -> Finding | None:
    """Held-out rewards of a role rise while its independent judges fall: by PARTED percent each, since the judges'
    last maximum, in the mean of the last two evaluations."""
    reward, monitor = _mean_change(rewards), _mean_change(monitors)
    common = sorted(reward.keys() & monitor.keys())
    if len(common) < 3:
        return None
    parting = max(common, key=lambda iteration: (monitor[iteration], iteration))
    after = [iteration for iteration in common if iteration > parting]
    if len(after) < 2:
        return None
    risen = mean([reward[i] for i in after[-2:]]) - reward[parting]
    fallen = monitor[parting] - mean([monitor[i] for i in after[-2:]])
    if risen < PARTED or fallen < PARTED:
        return None
    told = (
        f"Since iteration {parting} the {role} reward has risen by {risen:.1f}% of its first value, while the "
        f"independent judges of {role} have fallen by {fallen:.1f}%: the policy may be learning the reward's mistakes."
    )
    remedy = f"Take the checkpoint nearest to iteration {parting}, or add a second {role} reward."
    return Finding("hacking", told, parting, remedy, role)


def competition(rewards: Mapping[Role, Iterable[Series]]) -> Finding | None:
    """One role's held-out reward has risen and the other's fallen, by PARTED percent each, since the first."""
    changes = {role: _mean_change(values) for role, values in rewards.items()}
    late = {role: mean(list(change.values())[-2:]) for role, change in changes.items() if len(change) > 2}
    if len(late) < 2 or max(late.values()) < PARTED or min(late.values()) > -PARTED:
        return None
    winner, loser = max(late, key=lambda role: late[role]), min(late, key=lambda role: late[role])
    told = f"Held-out {winner} has risen by {late[winner]:.1f}% while {loser} has fallen by {-late[loser]:.1f}%."
    since = max(changes[loser], key=lambda iteration: (changes[loser][iteration], iteration))
    remedy = (
        f"Weigh {loser} more: method.weighting=tdw, or method.combine=advantages with a weight above 1 on its reward."
    )
    return Finding("competition", told, since, remedy)


def copy_paste(name: str, guard: Series) -> Finding | None:
    """A guard has risen by PASTED points since the first, in the mean of the last two evaluations."""
    if len(guard) < 3:
        return None
    risen = mean([value for _, value in guard[-2:]]) - guard[0][1]
    if risen < PASTED:
        return None
    since = _since(guard, lambda value: value >= guard[0][1] + PASTED, window=1)
    told = f"The guard {name} has risen by {risen:.1f} points, from {guard[0][1]:.1f}: pictures repeat their reference."
    return Finding("copy-paste", told, since, "Weigh the prompt more, or give masks with the references.", name)


def diversity_collapse(diversity: Series) -> Finding | None:
    """The pictures of a group differ by less than COLLAPSED of what they did, in the mean of a fifth of the run."""
    if len(diversity) < LEAST:
        return None
    width = _fifth(diversity)
    early = mean([value for _, value in diversity[:width]])
    late = mean([value for _, value in diversity[-width:]])
    if late >= COLLAPSED * early:
        return None
    told = f"The pictures of a group differ by {100 * late:.2f}% of full contrast; at first it was {100 * early:.2f}%."
    since = _since(diversity, lambda value: value < COLLAPSED * early, width)
    return Finding("diversity", told, since, "Raise rollout.eta, or lower train.learning_rate or set train.kl_weight.")


def dead_groups(role: Role, shares: Series) -> Finding | None:
    """More than DEAD of the groups have no signal in a role, in the mean of the last fifth of the run."""
    if (found := _at_last(shares, DEAD)) is None:
        return None
    late, since = found
    told = f"In {late:.0%} of the groups all pictures have the same {role} score: they teach nothing of {role}."
    remedy = f"Take a finer {role} reward, a larger rollout.group_size or eta."
    return Finding("dead groups", told, since, remedy, role)


def many_vetoes(shares: Series) -> Finding | None:
    """Guards have vetoed more than VETOED of the pictures, in the mean of the last fifth of the run."""
    if (found := _at_last(shares, VETOED)) is None:
        return None
    late, since = found
    told = f"Guards veto {late:.0%} of the pictures: what is learnt comes from the others alone."
    return Finding("vetoes", told, since, "Raise the guard's limit, weigh the prompt more, or give masks.")


def kl_explosion(kl: Series) -> Finding | None:
    """The KL to the base model lies above KL_LIMIT, or above EXPLODED times its median, in the mean of the last
    three iterations. Steady growth, even by the cube of the iteration, stays below."""
    if len(kl) < LEAST:
        return None
    late, usual = mean([value for _, value in kl[-3:]]), median(value for _, value in kl)
    bound = min(KL_LIMIT, EXPLODED * usual)
    if late <= bound:
        return None
    told = f"The KL to the base model is {late:.2g} nats per element; its median over the run is {usual:.2g}."
    since = _since(kl, lambda value: value > bound, window=1)
    return Finding("KL", told, since, "Lower train.learning_rate, or set train.kl_weight.")


def clip_pinned(fractions: Series, updates: int) -> Finding | None:
    """Nearly all ratios are clipped in the last fifth of the run: PINNED of what is possible, the first of an
    iteration's `updates` being on-policy and thus never clipped."""
    if len(fractions) < LEAST or updates < 2:
        return None
    width, most = _fifth(fractions), (updates - 1) / updates
    late = mean([value for _, value in fractions[-width:]])
    if late < PINNED * most:
        return None
    told = f"{late:.0%} of the ratios are clipped, of {most:.0%} that can be: most of each iteration is thrown away."
    since = _since(fractions, lambda value: value >= PINNED * most, width)
    return Finding("clipping", told, since, "Lower train.learning_rate or train.updates, or widen train.clip_range.")


def _evaluated(judges: Sequence[RewardConfig], role: str, records: Records) -> dict[str, Series]:
    names = [reward_name(judge) for judge in judges if judge.role == role]
    found = {name: series(records, f"evaluation/{name}/mean") for name in names}
    return {name: values for name, values in found.items() if values}


def _mean_change(curves: Iterable[Series]) -> dict[int, float]:
    """By iteration, in rising order: the mean change of several scores in percent, where all of them are known."""
    changes = [changes_in_percent(curve) for curve in curves]
    common = set.intersection(*(set(change) for change in changes)) if changes else set()
    return {iteration: mean([change[iteration] for change in changes]) for iteration in sorted(common)}


def _fifth(values: Series) -> int:
    return max(3, len(values) // 5)


def _at_last(shares: Series, least: float) -> tuple[float, int | None] | None:
    """The mean share of the last fifth of the run, and since when it is so; None where it is below `least`."""
    if len(shares) < LEAST:
        return None
    width = _fifth(shares)
    late = mean([value for _, value in shares[-width:]])
    return None if late < least else (late, _since(shares, lambda value: value >= least, width))


def _since(values: Series, holds: Callable[[float], bool], window: int) -> int | None:
    """The first iteration from which the mean of the last `window` values holds up to the end."""
    first = None
    for i in range(len(values) - 1, window - 2, -1):
        if not holds(mean([value for _, value in values[i + 1 - window : i + 1]])):
            break
        first = values[i + 1 - window][0]
    return first
