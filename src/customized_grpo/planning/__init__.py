"""Parameters, memory, work and downloads of a run, estimated before anything is loaded."""

from customized_grpo.planning.plan import Plan, make_plan
from customized_grpo.planning.preflight import check_models
from customized_grpo.planning.report import plan_run

__all__ = ["Plan", "check_models", "make_plan", "plan_run"]
