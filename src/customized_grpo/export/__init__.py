"""A finished run for others to use: its LoRA with a model card, or a whole pipeline with the change in its weights."""

from customized_grpo.export.lora import export_run
from customized_grpo.export.merge import merge_run

__all__ = ["export_run", "merge_run"]
