"""A 12-billion-parameter model on one GPU: speed, memory and correctness, in under 6 minutes.

python -m benchmarks.gpu --out runs/gpu
"""
