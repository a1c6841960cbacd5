"""Training: `trainer.py` reads top to bottom as the algorithm, `base.py` is the loop around it."""
