"""Role weights from gains: multipliers that satisfy a constraint, and the gradient of the area."""

from __future__ import annotations

import pytest
import torch

from customized_grpo.method import Control, dual_ascent, hypervolume_weights, lagrangian_weights

KEEPS_PROMPT = torch.tensor([False, True])  # identity is free


def zero() -> torch.Tensor:
    return torch.zeros(2, dtype=torch.float64)


@pytest.mark.parametrize(("bound", "noise"), [(0.0, 0.0), (0.0, 0.05), (0.1, 0.05)])
def test_a_constraint_is_met_and_the_free_role_gets_the_rest(bound: float, noise: float) -> None:
    """A prompt that falls while its weight is below 0.4 and rises above; gains are seen with noise."""
    generator = torch.Generator().manual_seed(0)
    state, gain, late = Control(zero(), KEEPS_PROMPT.double()), 0.0, []
    for iteration in range(400):
        violation = torch.tensor([0.0, bound - gain - noise * float(torch.randn((), generator=generator))])
        multipliers, state = dual_ascent(violation.double(), state, (10.0, 1.0, 20.0), 0.8)
        weights = lagrangian_weights(multipliers, KEEPS_PROMPT)
        assert float(weights.sum()) == pytest.approx(1) and bool((multipliers >= 0).all())
        gain += 0.05 * (float(weights[1]) - 0.4)
        late += [gain] if iteration >= 200 else []
    assert sum(late) / len(late) == pytest.approx(bound, abs=0.01)
    assert float(multipliers[0]) == 0, "the role without a constraint has no multiplier"


def test_a_constraint_that_holds_by_itself_loses_its_weight() -> None:
    state = Control(zero(), KEEPS_PROMPT.double())
    for _ in range(50):
        multipliers, state = dual_ascent(torch.tensor([0.0, -0.2]).double(), state, (10.0, 1.0, 20.0), 0.8)
    assert lagrangian_weights(multipliers, KEEPS_PROMPT).tolist() == [1.0, 0.0]
    assert float(state.integral[1]) == 0


def test_two_constraints_without_violations_weigh_alike() -> None:
    both = torch.tensor([True, True])
    assert lagrangian_weights(zero(), both).tolist() == [0.5, 0.5]
    weights = lagrangian_weights(torch.tensor([2.0, 0.0]).double(), both)
    torch.testing.assert_close(weights, torch.tensor([0.75, 0.25]).double())


def test_weights_are_the_gradient_of_the_area() -> None:
    gains, spreads = torch.tensor([0.3, 0.1]).double(), torch.tensor([0.2, 0.15]).double()
    step = 1e-6
    slopes = []
    for role in range(2):  # of the area, when one role's normalised reward rises
        moved = torch.zeros(2).double()
        moved[role] = step * spreads[role]
        slopes.append(((gains + moved).prod() - (gains - moved).prod()) / (2 * step))
    expected = torch.stack(slopes) / sum(slopes)
    torch.testing.assert_close(hypervolume_weights(gains, spreads), expected, rtol=1e-6, atol=0)


def test_at_the_start_both_roles_count_and_one_that_fell_counts_most() -> None:
    alike = torch.tensor([0.2, 0.2]).double()
    assert hypervolume_weights(zero(), alike).tolist() == [0.5, 0.5]
    fallen = hypervolume_weights(torch.tensor([0.4, -0.1]).double(), alike)
    assert float(fallen[1]) == pytest.approx(0.8)
    assert hypervolume_weights(zero(), zero()).tolist() == [0.5, 0.5]
