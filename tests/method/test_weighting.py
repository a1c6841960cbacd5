"""TDW against the released table, its scaling, and the weight of each trained step."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from customized_grpo.method import shaped_advantages, static, step_weights, tdw, tdw_reversed


def published(t: int) -> float:
    """The released schedule for 25 steps, written out on plain numbers."""
    if t < 6:
        return 0.7
    if t < 22:
        return 0.3 + 0.4 * (1 - 1 / (1 + math.exp(-0.8 * (t - 10))))
    return 0.5


def test_the_published_table_exactly() -> None:
    assert torch.equal(tdw(25), torch.tensor([published(t) for t in range(25)]))


@settings(max_examples=60, deadline=None)
@given(steps=st.integers(1, 400))
def test_breakpoints_keep_their_place_in_time(steps: int) -> None:
    for t, weight in enumerate(tdw(steps).tolist()):
        if 25 * t < 6 * steps:
            assert weight == pytest.approx(0.7)
        elif 25 * t >= 22 * steps:
            assert weight == pytest.approx(0.5)
        else:
            slide = 1 / (1 + math.exp(-20 * (t / steps - 0.4)))
            assert weight == pytest.approx(0.3 + 0.4 * (1 - slide), abs=1e-6)


def test_reversed_puts_identity_first() -> None:
    prompt, identity = step_weights("tdw-reversed", 25)
    torch.testing.assert_close(identity, tdw(25))
    assert prompt[0].item() == pytest.approx(0.3)
    assert torch.equal(prompt, tdw_reversed(25))
    # "tdw-shuffled" differs in where its table is read, and that is not the schedule's to say.
    assert all(map(torch.equal, step_weights("tdw-shuffled", 25), step_weights("tdw", 25)))


@pytest.mark.parametrize("kind", ["tdw", "tdw-reversed", "tdw-shuffled"])
def test_time_aware_weights_add_up_to_one(kind: str) -> None:
    prompt, identity = step_weights(kind, 17, prompt_weight=9.0, identity_weight=9.0)
    torch.testing.assert_close(prompt + identity, torch.ones(17))


def test_static_takes_any_pair() -> None:
    prompt, identity = step_weights("static", 3, prompt_weight=1.5, identity_weight=1.0)
    assert (prompt.tolist(), identity.tolist()) == ([1.5] * 3, [1.0] * 3)
    assert [w.tolist() for w in static(2, 1, 0)] == [[1.0, 1.0], [0.0, 0.0]]


def test_bad_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown weighting"):
        step_weights("linear", 25)
    for kind in ("tdw", "static", "tdw-reversed", "tdw-shuffled"):
        with pytest.raises(ValueError, match="at least 1"):
            step_weights(kind, 0)


def shaped(
    a_prompt: list[float],
    a_identity: list[float],
    bonus: list[float],
    steps: list[list[int]],
    clip: float = 5.0,
) -> torch.Tensor:
    w_prompt, w_identity = step_weights("tdw", 25)
    return shaped_advantages(
        a_prompt=torch.tensor(a_prompt),
        a_identity=torch.tensor(a_identity),
        bonus=torch.tensor(bonus),
        w_prompt=w_prompt,
        w_identity=w_identity,
        steps=torch.tensor(steps),
        clip=clip,
    )


def test_the_weight_belongs_to_the_true_denoising_step() -> None:
    # Two samples, steps in different, shuffled orders; weights 0.7/0.3 at 0, 0.5/0.5 at 10 and 23.
    actual = shaped([1.0, -1.0], [2.0, 1.0], [0.1, -0.2], [[23, 0], [0, 10]])
    expected = [[1.5 + 0.1, 0.7 + 0.6 + 0.1], [-0.7 + 0.3 - 0.2, 0.0 - 0.2]]
    torch.testing.assert_close(actual, torch.tensor(expected))


def test_the_total_is_clipped_bonus_included() -> None:
    assert shaped([6.0, -9.0], [4.5, -9.0], [0.4, 0.0], [[10], [0]]).tolist() == [[5.0], [-5.0]]
    unclipped = shaped([6.0], [4.5], [0.4], [[10]], clip=math.inf)
    assert unclipped.item() == pytest.approx(5.65)


def test_bad_arguments_are_refused() -> None:
    for outside in (-1, 25):
        with pytest.raises(ValueError, match=r"0\.\.24"):
            shaped([1.0], [1.0], [0.0], [[outside]])
    with pytest.raises(ValueError, match="clip"):
        shaped([1.0], [1.0], [0.0], [[1]], clip=0.0)
    with pytest.raises(ValueError, match=r"\(B,\)"):
        shaped([1.0, 2.0], [1.0], [0.0], [[1]])
    w, one = torch.ones(3), torch.ones(1)
    with pytest.raises(ValueError, match=r"\(T,\)"):
        shaped_advantages(
            a_prompt=one,
            a_identity=one,
            bonus=one,
            w_prompt=w,
            w_identity=torch.ones(2),
            steps=torch.zeros(1, 1, dtype=torch.long),
        )


def test_a_table_is_read_as_it_stands_and_holds_one_weight_a_step() -> None:
    prompt, identity = step_weights("table", 3, prompt_table=[1.0, 0.5, 0.0], identity_table=[0.25, 0.5, 2.0])
    assert prompt.tolist() == [1.0, 0.5, 0.0] and identity.tolist() == [0.25, 0.5, 2.0]
    with pytest.raises(ValueError, match="2 weights of the identity for 3 steps"):
        step_weights("table", 3, prompt_table=[1.0, 0.5, 0.0], identity_table=[0.25, 0.5])
