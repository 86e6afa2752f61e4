"""Matrix-free linear algebra: knows matvecs, never models."""

from theodolite.linalg.bands import Share, cumulative, mass
from theodolite.linalg.block_lanczos import block_lanczos
from theodolite.linalg.blocks import BlockDiagonal
from theodolite.linalg.cg import cg
from theodolite.linalg.composites import Compression, Product, Scaled, Submatrix, Sum
from theodolite.linalg.decomposition import Decomposition, decompose
from theodolite.linalg.diagonal import DiagonalEstimate, diagonal, xdiag
from theodolite.linalg.functions import FunctionProduct, funm_multiply
from theodolite.linalg.integrals import Integral, integrate
from theodolite.linalg.inverse import Inverse
from theodolite.linalg.kronecker import Kronecker, RotatedDiagonal
from theodolite.linalg.lanczos import Eigenpairs, lanczos
from theodolite.linalg.minres import minres
from theodolite.linalg.missing import Deflated, misses_eigenvalues
from theodolite.linalg.operator import LinearOperator
from theodolite.linalg.preconditioners import SpectralPreconditioner, deflating, nystrom
from theodolite.linalg.quadrature import Quadrature, slq
from theodolite.linalg.sharded import Sharded
from theodolite.linalg.solution import Solution
from theodolite.linalg.structured import Congruence, Dense, Diagonal, Identity
from theodolite.linalg.trace import TraceEstimate, hutchinson, hutchpp
from theodolite.linalg.xtrace import xnystrace, xtrace

__all__ = [
    "BlockDiagonal",
    "Compression",
    "Congruence",
    "Decomposition",
    "Deflated",
    "Dense",
    "Diagonal",
    "DiagonalEstimate",
    "Eigenpairs",
    "FunctionProduct",
    "Identity",
    "Integral",
    "Inverse",
    "Kronecker",
    "LinearOperator",
    "Product",
    "Quadrature",
    "RotatedDiagonal",
    "Scaled",
    "Sharded",
    "Share",
    "Solution",
    "SpectralPreconditioner",
    "Submatrix",
    "Sum",
    "TraceEstimate",
    "block_lanczos",
    "cg",
    "cumulative",
    "decompose",
    "deflating",
    "diagonal",
    "funm_multiply",
    "hutchinson",
    "hutchpp",
    "integrate",
    "lanczos",
    "mass",
    "minres",
    "misses_eigenvalues",
    "nystrom",
    "slq",
    "xdiag",
    "xnystrace",
    "xtrace",
]
