"""A run for others: its report as one HTML file, its LoRA with a model card, its merged pipeline."""

from customized_grpo.reporting.page import write_report

__all__ = ["write_report"]
