"""Drawing held-out pairs with a policy and scoring what it drew."""

from customized_grpo.evaluation.evaluate import Evaluation, evaluate, read_evaluation
from customized_grpo.evaluation.grid import evaluation_grid, shown_pairs

__all__ = ["Evaluation", "evaluate", "evaluation_grid", "read_evaluation", "shown_pairs"]
