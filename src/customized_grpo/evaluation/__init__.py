"""Drawing held-out pairs with a policy and scoring what it drew."""

from customized_grpo.evaluation.evaluate import Evaluation, evaluate, read_evaluation

__all__ = ["Evaluation", "evaluate", "read_evaluation"]
