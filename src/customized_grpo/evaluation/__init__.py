"""Drawing held-out pairs with a policy and scoring what it drew."""

from customized_grpo.evaluation.evaluate import Evaluation, evaluate, read_evaluation
from customized_grpo.evaluation.grid import evaluation_grid, shown_pairs
from customized_grpo.evaluation.planes import axes_of, guards_of

__all__ = [
    "Evaluation",
    "axes_of",
    "evaluate",
    "evaluation_grid",
    "guards_of",
    "read_evaluation",
    "shown_pairs",
]
