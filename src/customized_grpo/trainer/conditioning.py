"""Conditioning of pairs: how many are cached in memory, and those encoded ahead into the folder `policy.conditions`."""

import itertools
from collections.abc import Iterable

from customized_grpo.config import Config
from customized_grpo.protocols import PairDataset, Policy
from customized_grpo.trainer.order import pairs_of_iteration
from customized_grpo.trainer.processes import Processes

_CACHED = 256  # pairs whose conditioning is cached in memory if it is not on disk


def conditions_cached(config: Config) -> int:
    """Return for how many pairs a process caches the conditioning in memory: one iteration's if the disk has it."""
    return config.rollout.pairs if config.policy.conditions is not None else _CACHED


def encode_ahead(
    config: Config,
    policy: Policy,
    dataset: PairDataset,
    others: Iterable[tuple[PairDataset | None, int]],
    done: int,
    processes: Processes,
) -> None:
    """Encode the pairs of the iterations after the first `done`, and of `others`: datasets, and how many pairs of each.

    Each process does a share.
    """
    iterations = range(done, config.train.iterations)
    sampled = (pairs_of_iteration(len(dataset), config.rollout.pairs, config.seed, i) for i in iterations)
    ahead = [(dataset, index) for index in sorted(set(itertools.chain.from_iterable(sampled)))]
    for other, count in others:
        ahead += [(other, index) for index in range(min(count, len(other)))] if other is not None else []
    for source, index in ahead[processes.index :: processes.count]:
        pair = source[index]
        policy.encode(pair.prompt, pair.references)
    processes.wait()
