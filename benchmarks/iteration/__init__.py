"""Benchmark one training iteration, stage by stage: python -m benchmarks.iteration"""
