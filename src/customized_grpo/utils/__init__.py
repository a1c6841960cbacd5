"""Helpers without knowledge of models or training: files, terminal output, devices, model paths, random numbers."""
