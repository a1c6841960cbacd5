"""Intervals of means agree with values worked by hand, and with the normal approximation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from customized_grpo.evaluation.estimates import Estimate


def test_two_values_give_an_interval_that_reaches_both() -> None:
    # The mean of a resample is 0, 1 or 2 with probabilities 1/4, 1/2, 1/4: the middle 95% reach both ends.
    estimate = Estimate.of([0.0, 2.0])
    assert (estimate.mean, estimate.low, estimate.high) == (1.0, 0.0, 2.0)
    assert estimate.text(".2f") == "1.00 [0.00, 2.00]"


def test_many_values_give_the_normal_interval() -> None:
    values = np.random.default_rng(3).normal(5.0, 2.0, size=400)
    estimate, half = Estimate.of(values.tolist()), 1.96 * values.std() / math.sqrt(len(values))
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.02)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.02)


def test_equal_values_and_one_value_have_no_interval() -> None:
    assert Estimate.of([0.1] * 3).text() == "+0.1"
    assert (Estimate.of([-3.25]).low, Estimate.of([-3.25]).high) == (-3.25, -3.25)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_values_without_an_interval(values: list[float]) -> None:
    with pytest.raises(ValueError, match="give at least one, all of them finite"):
        Estimate.of(values)
