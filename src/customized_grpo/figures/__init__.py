"""Figures of a run: one function for each, which writes one PNG file."""
