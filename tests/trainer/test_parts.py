"""The small parts of the loop: order, trained steps, credit."""

from __future__ import annotations

import pytest
import torch

from customized_grpo.config import MethodConfig, RewardConfig
from customized_grpo.method import sars, tdw
from customized_grpo.rewards.errors import RewardError
from customized_grpo.trainer.credit import assign_credit, method_at, objectives_of, steps_to_weigh_at
from customized_grpo.trainer.grpo import sample_trained_steps
from customized_grpo.trainer.order import images_of_updates, pairs_of_iteration
from customized_grpo.utils.noise import normal

REWARDS = [
    RewardConfig(kind="dino", role="identity", name="a"),
    RewardConfig(kind="dino", role="identity", name="b", weight=2.0),
    RewardConfig(kind="clip", role="prompt", name="p"),
]
SCORES = {
    "a": torch.tensor([[1.0, 2.0, 3.0]]),
    "b": torch.tensor([[0.0, 0.0, 3.0]]),
    "p": torch.tensor([[5.0, 9.0, 1.0]]),
}


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
    steps = sample_trained_steps(range(9), 0.6, 0, 3, [("x", 0), ("x", 1), ("y", 0)])
    assert steps.shape == (3, 5)
    assert bool((steps < 9).all())
    assert bool((steps.diff(dim=1) > 0).all()), "without replacement, in rising order"
    assert torch.equal(sample_trained_steps(range(9), 0.6, 0, 3, [("y", 0)])[0], steps[2])
    counts = sample_trained_steps(range(9), 0.6, 0, 3, [("z", i) for i in range(900)]).flatten().bincount()
    assert counts.min() > 400, "every stochastic step is trained as often as any other"
    assert len(counts) == 9


def test_noise_belongs_to_its_key() -> None:
    assert torch.equal(normal((4,), 0, "steps", 1, "x", 2), normal((4,), 0, "steps", 1, "x", 2))
    different = [normal((4,), 0, "steps", 1, "x", n) for n in range(3)] + [normal((4,), 0, "steps", 1, "x2", 0)]
    assert len({tuple(values.tolist()) for values in different}) == 4
    # Keys are message apart whole: "1", 1 and a boundary moved between parts are not the same noise.
    assert not torch.equal(normal((4,), "ab", "c"), normal((4,), "a", "bc"))


def test_credit_joins_rewards_shaping_and_time() -> None:
    method = MethodConfig(shaping="sars", gamma=0.4, weighting="tdw")
    credit, record = assign_credit(SCORES, REWARDS, method)
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


def test_the_objectives_of_surgery_are_the_parts_of_the_advantage() -> None:
    method = MethodConfig(surgery="pcgrad")
    credit, _ = assign_credit(SCORES, REWARDS, method)
    steps = torch.tensor([[24, 0], [3, 10], [6, 23]])
    parts = credit.objectives_at(method, 25, steps)
    assert parts.shape == (3, 2, 2) and objectives_of(method) == 2
    whole = credit.at(method, 25, steps)
    torch.testing.assert_close(parts.sum(-1), whole)
    half = sars(credit.advantages["identity"], credit.advantages["prompt"], 0.4).T / 2
    torch.testing.assert_close(parts[..., 0], (1 - tdw(25)[steps]) * credit.advantages["identity"].T + half)
    torch.testing.assert_close(parts[..., 1], tdw(25)[steps] * credit.advantages["prompt"].T + half)
    assert torch.equal(credit.objectives_at(MethodConfig(), 25, steps), whole) and objectives_of(MethodConfig()) == 1


def test_an_annealed_gamma_is_gamma_first_and_gamma_last_at_the_end() -> None:
    method = MethodConfig(gamma=0.4, gamma_last=0.0)
    assert [method_at(method, i, 5).gamma for i in range(5)] == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])
    assert [method_at(MethodConfig(), i, 5).gamma for i in (0, 4)] == [0.4, 0.4]
    assert method_at(method, 0, 1).gamma == 0.4, "one iteration is the first"


def test_a_group_without_signal_is_counted_and_moves_nothing() -> None:
    scores = {"a": torch.ones(2, 3), "b": torch.ones(2, 3), "p": torch.tensor([[1.0, 2, 3], [2, 2, 2]])}
    credit, record = assign_credit(scores, REWARDS, MethodConfig())
    assert record["share/no_signal_identity"] == 1.0
    assert record["share/no_signal_prompt"] == 0.5
    advantages = credit.at(MethodConfig(), 10, torch.zeros(6, 1, dtype=torch.long))
    assert not advantages[3:].any()
    assert torch.isfinite(advantages).all()


def test_weights_are_read_at_the_trained_steps_but_by_the_shuffled_rival() -> None:
    images = [("x", 0), ("x", 1), ("y", 0)]
    trained = sample_trained_steps(range(24), 0.6, 0, 3, images)
    for weighting in ("tdw", "tdw-reversed", "static"):
        assert torch.equal(steps_to_weigh_at(weighting, trained, 0, 3, images), trained)
    positions = steps_to_weigh_at("tdw-shuffled", trained, 0, 3, images)
    assert torch.equal(positions.sort(dim=1).values, torch.arange(14).repeat(3, 1)), "each position once"
    assert len({tuple(row) for row in positions.tolist()}) == 3
    # Of the image alone, whatever stands beside it; of the seed and the iteration, too.
    assert torch.equal(steps_to_weigh_at("tdw-shuffled", trained[2:], 0, 3, [("y", 0)])[0], positions[2])
    for seed, iteration in ((1, 3), (0, 4)):
        assert not torch.equal(steps_to_weigh_at("tdw-shuffled", trained, seed, iteration, images), positions)


SUM = MethodConfig(shaping="none", weighting="static", normalise="sum", prompt_weight=1.5, identity_weight=1.0)


def test_the_sum_is_normalised_as_one_reward() -> None:
    scores = {
        "a": torch.tensor([[1.0, 2, 0], [10.0, 20, 30]]),
        "b": torch.tensor([[0.0, 0, 3], [0.0, 0, 0]]),
        "p": torch.tensor([[3.0, 1, 2], [2.0, 1, 0]]),
    }
    credit, record = assign_credit(scores, REWARDS, SUM)
    advantages = credit.at(SUM, 10, torch.arange(4).repeat(6, 1))
    # 1 + 4.5, 2 + 1.5, 6 + 3 (b counts twice): mean 6, deviations -0.5, -2.5, 3, variance 15.5 / 2.
    first = [deviation / 7.75**0.5 for deviation in (-0.5, -2.5, 3.0)]
    # 13, 21.5, 30: in a plain sum the larger scale wins; by roles the larger weight does.
    expected = torch.tensor([*first, -1.0, 0.0, 1.0])
    torch.testing.assert_close(advantages, expected[:, None].expand(6, 4))
    by_roles, roles_record = assign_credit(scores, REWARDS, SUM.model_copy(update={"normalise": "roles"}))
    at_first = by_roles.at(SUM, 10, torch.zeros(6, 1, dtype=torch.long))
    torch.testing.assert_close(at_first[3:, 0], torch.tensor([0.5, 0.0, -0.5]))
    assert record == roles_record, "the log tells of the roles in both"
    assert record["share/conflicted"] > 0


def test_the_sum_heeds_its_clip_and_no_floor() -> None:
    floor = {"std_floor": {"identity": 100.0, "prompt": 100.0}}
    free, floored, clipped = (
        assign_credit(SCORES, REWARDS, method)[0].at(method, 10, torch.zeros(3, 2, dtype=torch.long))
        for method in (SUM.model_copy(update=change) for change in ({}, floor, {"advantage_clip": 1.0}))
    )
    assert torch.equal(floored, free) and free.max() > 1
    assert torch.equal(clipped, free.clamp(-1, 1))


@pytest.mark.parametrize("combine", ["rewards", "advantages"])
def test_scores_beyond_the_range_of_numbers_are_an_error(combine: str) -> None:
    method = MethodConfig(combine=combine)
    plain = [RewardConfig(kind="a", role="identity"), RewardConfig(kind="b", role="prompt")]
    with pytest.raises(RewardError, match=r"role prompt.*scores to 1e\+38.*return smaller scores"):
        assign_credit({"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([[0.0, 1e38]])}, plain, method)
