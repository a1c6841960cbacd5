"""Error of the rewards."""


class RewardError(ValueError):
    """A reward that cannot be built or has no usable scores. The message is one line with the reward and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
