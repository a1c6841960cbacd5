"""DreamBench's protocol for any system: a model, a run, a LoRA, or images that another system made."""

from customized_grpo.evaluation.dreambench.comparison import compare
from customized_grpo.evaluation.dreambench.evaluation import evaluate_on, open_task

__all__ = ["compare", "evaluate_on", "open_task"]
