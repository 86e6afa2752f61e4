"""Which hidden units of two checkpoints correspond, on a symmetry that is traced from the model."""

from theodolite.landscapes.paths.matching.match import Matching, match

__all__ = ["Matching", "match"]
