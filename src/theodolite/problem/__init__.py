"""What is surveyed: model, criterion and fixed data as one function of the parameters."""

from theodolite.problem.criteria import OutputLoss
from theodolite.problem.guard import undisturbed
from theodolite.problem.numerics import exact_arithmetic
from theodolite.problem.parameters import Layout
from theodolite.problem.point import Point
from theodolite.problem.problem import Chunk, Problem

__all__ = ["Chunk", "Layout", "OutputLoss", "Point", "Problem", "exact_arithmetic", "undisturbed"]
