"""The one error of the rewards."""

from __future__ import annotations


class RewardError(ValueError):
    """A judge that cannot be built or gave no usable scores; its text is one line naming the judge
    and the remedy.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
