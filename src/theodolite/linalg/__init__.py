"""Matrix-free linear algebra: knows matvecs, never models."""

from theodolite.linalg.cg import Solution, cg
from theodolite.linalg.composites import Compression, Product, Scaled, Submatrix, Sum
from theodolite.linalg.lanczos import Eigenpairs, lanczos
from theodolite.linalg.missing import Deflated, misses_eigenvalues
from theodolite.linalg.operator import LinearOperator
from theodolite.linalg.quadrature import Quadrature, integrate, slq
from theodolite.linalg.structured import Congruence, Dense, Diagonal, Identity
from theodolite.linalg.trace import TraceEstimate, hutchinson, hutchpp

__all__ = [
    "Compression",
    "Congruence",
    "Deflated",
    "Dense",
    "Diagonal",
    "Eigenpairs",
    "Identity",
    "LinearOperator",
    "Product",
    "Quadrature",
    "Scaled",
    "Solution",
    "Submatrix",
    "Sum",
    "TraceEstimate",
    "cg",
    "hutchinson",
    "hutchpp",
    "integrate",
    "lanczos",
    "misses_eigenvalues",
    "slq",
]
