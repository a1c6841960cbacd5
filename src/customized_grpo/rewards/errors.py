"""Error of the rewards, and the remedy for an unknown name."""

from collections.abc import Iterable

from customized_grpo.config.reading import nearest


class RewardError(ValueError):
    """A reward that cannot be built or has no usable scores. The message is one line with the reward and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return the remedy for an unknown name: the known one that was probably meant, if any is similar."""
    near = nearest(name, known)
    return f"did you mean {near!r}?" if near else otherwise
