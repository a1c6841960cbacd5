"""Embedded world: procedurally generated subjects and scenes, and the models trained on them."""
