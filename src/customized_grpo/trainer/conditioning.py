"""Conditioning of pairs, encoded once: cached in memory, or ahead of the training in the policy's folder."""

from __future__ import annotations

import itertools
from collections import OrderedDict

from customized_grpo.config import Config
from customized_grpo.protocols import Conditions, Pair, PairDataset, Policy
from customized_grpo.trainer.order import pairs_of_iteration
from customized_grpo.trainer.processes import Processes

_CACHED = 256  # pairs whose conditioning stays in memory, where it is not cached on disk


def conditions_cached(config: Config) -> int:
    """Return of how many pairs a process caches the conditioning in memory: of one iteration's where disk has it."""
    return config.rollout.pairs if config.policy.conditions is not None else _CACHED


class ConditionCache:
    """Conditioning of pairs, encoded once as long as it is among the most recent ones.

    Args:
        policy: What encodes a pair.
        size: How many pairs are cached.
    """

    def __init__(self, policy: Policy, size: int) -> None:
        self._policy, self._size = policy, size
        self._cached: OrderedDict[str, Conditions] = OrderedDict()

    def __call__(self, pair: Pair) -> Conditions:
        """Return the conditioning of a pair, one row."""
        if pair.key not in self._cached:
            self._cached[pair.key] = self._policy.encode(pair.prompt, pair.references)
            if len(self._cached) > self._size:
                self._cached.popitem(last=False)
        return self._cached[pair.key]


def encode_ahead(
    config: Config,
    policy: Policy,
    dataset: PairDataset,
    held_out: PairDataset | None,
    done: int,
    processes: Processes,
) -> None:
    """Encode every pair that the run will meet into the policy's folder, a share by each process.

    Args:
        config: The run's settings.
        policy: A policy with a folder of conditioning (`policy.conditions`).
        dataset: The training pairs.
        held_out: The evaluation pairs, if any.
        done: Iterations that are done already.
        processes: This process among the others; all of them call this.
    """
    iterations = range(done, config.train.iterations)
    sampled = (pairs_of_iteration(len(dataset), config.rollout.pairs, config.seed, i) for i in iterations)
    ahead = [(dataset, index) for index in sorted(set(itertools.chain.from_iterable(sampled)))]
    ahead += [(held_out, index) for index in range(len(held_out))] if held_out is not None else []
    for source, index in ahead[processes.index :: processes.count]:
        pair = source[index]
        policy.encode(pair.prompt, pair.references)
    processes.wait()
