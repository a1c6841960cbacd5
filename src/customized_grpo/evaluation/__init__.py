"""Drawing held-out pairs with a policy and scoring what it drew."""

from customized_grpo.evaluation.grid import evaluation_grid, shown_pairs
from customized_grpo.evaluation.planes import axes_of, guards_of
from customized_grpo.trainer.evaluation import Evaluation, evaluate, read_evaluation

__all__ = [
    "Evaluation",
    "axes_of",
    "evaluate",
    "evaluation_grid",
    "guards_of",
    "read_evaluation",
    "shown_pairs",
]
