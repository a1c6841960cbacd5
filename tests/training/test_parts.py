"""The small parts of the loop: order, trained steps, credit."""

from __future__ import annotations

import torch

from customized_grpo.config import MethodConfig, RewardConfig
from customized_grpo.method import sars, tdw
from customized_grpo.noise import normal
from customized_grpo.training.credit import assign_credit
from customized_grpo.training.order import images_of_updates, pairs_of_iteration
from customized_grpo.training.update import draw_trained_steps

REWARDS = [
    RewardConfig(kind="dino", role="identity", name="a"),
    RewardConfig(kind="dino", role="identity", name="b", weight=2.0),
    RewardConfig(kind="clip", role="prompt", name="p"),
]


def test_an_epoch_shows_every_pair_once_in_an_order_of_the_seed() -> None:
    epoch = [i for iteration in range(5) for i in pairs_of_iteration(10, 2, 0, iteration)]
    assert sorted(epoch) == list(range(10))
    second = [i for iteration in range(5, 10) for i in pairs_of_iteration(10, 2, 0, iteration)]
    assert sorted(second) == list(range(10))
    assert second != epoch
    assert [i for iteration in range(5) for i in pairs_of_iteration(10, 2, 1, iteration)] != epoch


def test_updates_share_out_every_image_once() -> None:
    parts = images_of_updates(10, 3, seed=0, iteration=4)
    assert sorted(map(len, parts)) == [3, 3, 4]
    assert sorted(i for part in parts for i in part) == list(range(10))
    assert parts != images_of_updates(10, 3, seed=0, iteration=5)
    assert images_of_updates(2, 5, seed=0, iteration=0) != []


def test_trained_steps_leave_the_last_one_out_and_belong_to_their_image() -> None:
    steps = draw_trained_steps(10, 0.6, 0, 3, [("x", 0), ("x", 1), ("y", 0)])
    assert steps.shape == (3, 5)
    assert bool((steps < 9).all())
    assert bool((steps.diff(dim=1) > 0).all()), "without replacement, in rising order"
    assert torch.equal(draw_trained_steps(10, 0.6, 0, 3, [("y", 0)])[0], steps[2])
    counts = draw_trained_steps(10, 0.6, 0, 3, [("z", i) for i in range(900)]).flatten().bincount()
    assert counts.min() > 400, "every stochastic step is trained as often as any other"
    assert len(counts) == 9


def test_noise_belongs_to_its_key() -> None:
    assert torch.equal(normal((4,), 0, "steps", 1, "x", 2), normal((4,), 0, "steps", 1, "x", 2))
    different = [normal((4,), 0, "steps", 1, "x", n) for n in range(3)] + [normal((4,), 0, "steps", 1, "x2", 0)]
    assert len({tuple(values.tolist()) for values in different}) == 4
    # Keys are told apart whole: "1", 1 and a boundary moved between parts are not the same noise.
    assert not torch.equal(normal((4,), "ab", "c"), normal((4,), "a", "bc"))


def test_credit_joins_rewards_shaping_and_time() -> None:
    scores = {
        "a": torch.tensor([[1.0, 2.0, 3.0]]),
        "b": torch.tensor([[0.0, 0.0, 3.0]]),
        "p": torch.tensor([[5.0, 9.0, 1.0]]),
    }
    method = MethodConfig(shaping="sars", gamma=0.4, weighting="tdw")
    credit, record = assign_credit(scores, REWARDS, method)
    total = torch.tensor([[1.0, 2.0, 9.0]])
    identity = (total - total.mean()) / (total.std() + 1e-8)
    torch.testing.assert_close(credit.advantages["identity"], identity)
    prompt = torch.tensor([[0.0, 1.0, -1.0]])
    torch.testing.assert_close(credit.advantages["prompt"], prompt)
    steps = torch.tensor([[24, 0], [3, 10], [6, 23]])
    expected = tdw(25)[steps] * prompt.T + (1 - tdw(25)[steps]) * identity.T + sars(identity, prompt, 0.4).T
    torch.testing.assert_close(credit.at(method, 25, steps), expected.clamp(-5, 5))
    # The first image has a prompt advantage of zero; the others have two different signs.
    assert record["share/conflicted"] == 2 / 3
    assert record["identity/mean"] == 4.0
    assert record["reward/b/mean"] == 1.0


def test_a_group_without_signal_is_counted_and_moves_nothing() -> None:
    scores = {
        "a": torch.ones(2, 3),
        "b": torch.ones(2, 3),
        "p": torch.tensor([[1.0, 2, 3], [2, 2, 2]]),
    }
    credit, record = assign_credit(scores, REWARDS, MethodConfig())
    assert record["share/no_signal_identity"] == 1.0
    assert record["share/no_signal_prompt"] == 0.5
    advantages = credit.at(MethodConfig(), 10, torch.zeros(6, 1, dtype=torch.long))
    assert not advantages[3:].any()
    assert torch.isfinite(advantages).all()


def test_static_weights_are_the_naive_sum() -> None:
    scores = {
        "a": torch.tensor([[1.0, 2, 6]]),
        "b": torch.zeros(1, 3),
        "p": torch.tensor([[3.0, 1, 2]]),
    }
    method = MethodConfig(shaping="none", weighting="static", prompt_weight=1.5, identity_weight=1.0)
    credit, _ = assign_credit(scores, REWARDS, method)
    naive = 1.5 * credit.advantages["prompt"] + credit.advantages["identity"]
    advantages = credit.at(method, 10, torch.arange(9).repeat(3, 1))
    torch.testing.assert_close(advantages, naive.T.expand(3, 9))
