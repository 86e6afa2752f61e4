"""Matrix-free linear algebra: knows matvecs, never models."""

from theodolite.linalg.composites import Compression, Product, Scaled, Submatrix, Sum
from theodolite.linalg.lanczos import Eigenpairs, lanczos
from theodolite.linalg.operator import LinearOperator
from theodolite.linalg.structured import Congruence, Dense, Diagonal, Identity

__all__ = [
    "Compression",
    "Congruence",
    "Dense",
    "Diagonal",
    "Eigenpairs",
    "Identity",
    "LinearOperator",
    "Product",
    "Scaled",
    "Submatrix",
    "Sum",
    "lanczos",
]
