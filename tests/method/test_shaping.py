"""SARS and its rivals: values worked by hand, and the signs in the four quadrants."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from customized_grpo.method import SHAPINGS, annealed

SIZE = st.floats(0.0625, 3.0, width=32)
GAMMA = st.floats(0.05, 2.0)


def term(name: str, identity: float, prompt: float, gamma: float = 0.4) -> float:
    return float(SHAPINGS[name](torch.tensor([identity]), torch.tensor([prompt]), gamma))


@pytest.mark.parametrize(
    ("name", "identity", "prompt", "expected"),
    [
        ("sars", 1.0, 2.0, 0.4 * math.tanh(2)),
        ("sars", -1.0, 2.0, -0.4 * math.tanh(2)),
        ("sars", 1.0, -2.0, -0.4 * math.tanh(2)),
        ("sars", -1.0, -2.0, -0.4 * math.tanh(2)),
        ("sars", 0.0, -2.0, 0.0),
        ("sars", 0.0, 2.0, 0.0),
        ("bonus", 1.0, 2.0, 0.4 * math.tanh(2)),
        ("bonus", -1.0, 2.0, 0.0),
        ("bonus", -1.0, -2.0, 0.0),
        ("min", -1.0, 2.0, -0.4),
        ("min", 3.0, 2.0, 0.8),
        ("max", -1.0, 2.0, 0.8),
        ("max", -1.0, -2.0, -0.4),
        ("harmonic", 1.0, 3.0, 0.4 * 3 / 4),
        ("harmonic", -1.0, 3.0, 0.4 * -3 / 2),
        ("harmonic", 1.5, -1.5, 0.0),
        ("harmonic", 0.0, 0.0, 0.0),
        ("product", 0.0, 0.0, 0.4 * math.log(2) ** 2),
        ("product", 1.0, -2.0, 0.4 * math.log(1 + math.e) * math.log(1 + math.exp(-2))),
        ("none", 1.0, -2.0, 0.0),
    ],
)
def test_values_by_hand(name: str, identity: float, prompt: float, expected: float) -> None:
    assert term(name, identity, prompt) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@settings(max_examples=100, deadline=None)
@given(a=SIZE, b=SIZE, gamma=GAMMA)
def test_sars_by_quadrant(a: float, b: float, gamma: float) -> None:
    both = term("sars", a, b, gamma)
    conflicts = term("sars", -a, b, gamma), term("sars", a, -b, gamma)
    neither = term("sars", -a, -b, gamma)
    assert both > 0
    assert max(conflicts) < 0
    assert neither < 0
    # As published, the penalty is the same size as the bonus in all three other quadrants ...
    assert conflicts == (-both, -both)
    assert neither == -both
    assert both <= gamma * (1 + 1e-6)
    # ... so it is the weighted sum beside it that puts both-negative last.
    weighted = 0.5 * (a + b), 0.5 * (b - a), 0.5 * (a - b), -0.5 * (a + b)
    totals = [w + s for w, s in zip(weighted, (both, *conflicts, neither), strict=True)]
    assert totals[0] > max(totals[1:3]) >= min(totals[1:3]) > totals[3]


@settings(max_examples=100, deadline=None)
@given(a=st.floats(-3, 3), b=st.floats(-3, 3), name=st.sampled_from(sorted(SHAPINGS)))
def test_terms_are_symmetric_and_finite(a: float, b: float, name: str) -> None:
    assert term(name, a, b) == pytest.approx(term(name, b, a), rel=1e-5)
    assert math.isfinite(term(name, a, b))


@pytest.mark.parametrize("name", sorted(SHAPINGS))
def test_terms_scale_with_gamma_and_keep_the_shape(name: str) -> None:
    identity, prompt = torch.tensor([[1.0, -0.5], [2.0, 0.3]]), torch.tensor([[0.4, 1.0], [-1, -2]])
    small, large = (SHAPINGS[name](identity, prompt, g) for g in (0.1, 0.4))
    assert small.shape == (2, 2)
    torch.testing.assert_close(large, 4 * small)
    assert torch.equal(SHAPINGS[name](identity, prompt, 0.0), torch.zeros(2, 2))


def test_gamma_goes_in_a_straight_line_or_stays() -> None:
    assert [annealed(0.4, 0.0, done) for done in (0.0, 0.25, 1.0)] == pytest.approx([0.4, 0.3, 0.0])
    assert annealed(0.0, 0.8, 0.5) == pytest.approx(0.4)
    assert [annealed(0.4, None, done) for done in (0.0, 1.0)] == [0.4, 0.4]
    with pytest.raises(ValueError, match=r"done must be in 0\.\.1"):
        annealed(0.4, 0.0, 1.1)
