"""Error for data that cannot be used."""

from collections.abc import Iterable


class DataError(ValueError):
    """Data that cannot be used, with every problem found.

    Args:
        problems: One line each: file and line, what is wrong, and the remedy.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        # A file name may contain a line break; a problem may not.
        self.problems = tuple("\\n".join(problem.splitlines()) for problem in problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)
