"""A finished run for others to use: its LoRA with a model card, or a whole pipeline with the change in its weights."""
