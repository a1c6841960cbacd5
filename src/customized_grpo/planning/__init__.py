"""What a run will take, said before anything is loaded: parameters, memory, work, downloads."""

from customized_grpo.planning.plan import Plan, make_plan
from customized_grpo.planning.report import plan_run

__all__ = ["Plan", "make_plan", "plan_run"]
