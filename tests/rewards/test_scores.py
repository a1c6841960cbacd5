"""What scoring refuses, and that it names the judge and the pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.protocols import Pair
from customized_grpo.rewards import RewardError, score

MakePair = Callable[..., Pair]


@dataclass
class Scorer:
    """Scores by `rule`, and remembers the sizes of its batches."""

    rule: Callable[[Tensor, Sequence[Pair]], Any]
    name: str = "judge"
    met: list[int] = field(default_factory=list)

    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Any:
        self.met.append(len(images))
        return self.rule(images, pairs)


@pytest.fixture
def pairs(make_pair: MakePair) -> list[Pair]:
    return [make_pair(key) for key in "aabbc"]


def first_pixels(images: Tensor, _: Sequence[Pair]) -> Tensor:
    return images[:, 0, 0, 0].double()


def test_all_rewards_score_all_images_in_chunks(pairs: list[Pair]) -> None:
    images = torch.rand(5, 3, 4, 4, requires_grad=True)
    one, two = Scorer(first_pixels, "one"), Scorer(lambda i, p: -first_pixels(i, p), "two")
    scores = score([one, two], images, pairs, batch_size=2)
    assert list(scores) == ["one", "two"]
    assert torch.equal(scores["one"], images[:, 0, 0, 0].detach())
    assert torch.equal(scores["two"], -scores["one"])
    assert scores["one"].dtype == torch.float32 and not scores["one"].requires_grad
    assert one.met == two.met == [2, 2, 1]
    assert score([one], torch.empty(0, 3, 4, 4), [])["one"].shape == (0,)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_missing_and_names_its_pair(
    value: float, pairs: list[Pair], caplog: pytest.LogCaptureFixture
) -> None:
    def rule(images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        return torch.tensor([value if pair.key == "b" else 1.0 for pair in pairs])

    scores = score([Scorer(rule)], torch.rand(5, 3, 4, 4), pairs)["judge"]
    assert scores.isnan().tolist() == [pair.key == "b" for pair in pairs]
    assert bool((scores[~scores.isnan()] == 1).all())
    assert caplog.messages == [
        f"reward 'judge' returned {value} for images 3, 4 of 5, pair 'b'; the score counts as missing"
    ]


@pytest.mark.parametrize(
    ("needs", "changed", "message"),
    [
        (("reference",), {"references": (), "masks": ()}, "needs a reference, and pair 'b' has none; give a photo"),
        (("mask", "reference"), {"masks": (None,)}, "needs a mask, and pair 'b' has none; give one"),
        (("prompt",), {"prompt": " "}, "needs a prompt, and pair 'b' has none"),
        ("mask", {}, "needs is 'mask'; give a tuple"),
    ],
)
def test_what_a_reward_says_that_it_needs_is_held_against_the_pairs(
    needs: Any, changed: dict[str, Any], message: str, pairs: list[Pair]
) -> None:
    reward = Scorer(first_pixels)
    reward.needs = needs  # type: ignore[attr-defined]
    lacking = [replace(pair, **changed) if pair.key == "b" else pair for pair in pairs]
    with pytest.raises(RewardError, match=f"^reward 'judge'.* {message}"):
        score([reward], torch.rand(5, 3, 4, 4), lacking)
    assert not reward.met
    if needs[0] in ("reference", "mask", "prompt"):
        assert len(score([reward], torch.rand(5, 3, 4, 4), pairs)["judge"]) == 5
