"""Compare methods over seeds: python -m experiments.study recipes/studies/embedded.yaml"""
