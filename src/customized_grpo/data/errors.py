"""What is raised where data cannot be used."""

from __future__ import annotations

from collections.abc import Iterable


class DataError(ValueError):
    """Data that cannot be trained on.

    `problems` has one line each: where, what is wrong, the remedy. Its text is all of them.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        # A file name may hold a line break; a problem may not.
        self.problems = tuple("\\n".join(problem.splitlines()) for problem in problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)
