"""How fast an iteration is, stage by stage, against the machine's own peak and against one image at a time."""

from benchmarks.iteration.bench import bench

__all__ = ["bench"]
