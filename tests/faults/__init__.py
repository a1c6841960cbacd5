"""Breaking runs on purpose: `python -m tests.faults` from the root of the repository prints all figures."""
