"""Where the model meets linear algebra: Hessian, GGN, Fisher, covariance, Jacobian and what is made of them as operators."""

from theodolite.operators.certificate import Certificate
from theodolite.operators.count_sketch import CountSketch
from theodolite.operators.covariance import GradientCovariance
from theodolite.operators.diagonal import GGNBlocks, GGNDiagonal, ggn_diagonal
from theodolite.operators.fisher import Fisher
from theodolite.operators.ggn import GGN
from theodolite.operators.grouped import Grouped, problems_by_group
from theodolite.operators.hessian import Hessian
from theodolite.operators.input_hessian import InputHessian
from theodolite.operators.jacobian import Jacobian
from theodolite.operators.kfac import EKFAC, KFAC
from theodolite.operators.layer_blocks import LayerBlocks
from theodolite.operators.low_rank import fisher_spectrum, ggn_spectrum
from theodolite.operators.mfac import MFAC
from theodolite.operators.ntk import NTK
from theodolite.operators.preconditioned import PreconditionedHessian
from theodolite.operators.problem_operator import ProblemOperator

__all__ = [
    "EKFAC",
    "GGN",
    "KFAC",
    "MFAC",
    "NTK",
    "Certificate",
    "CountSketch",
    "Fisher",
    "GGNBlocks",
    "GGNDiagonal",
    "GradientCovariance",
    "Grouped",
    "Hessian",
    "InputHessian",
    "Jacobian",
    "LayerBlocks",
    "PreconditionedHessian",
    "ProblemOperator",
    "fisher_spectrum",
    "ggn_diagonal",
    "ggn_spectrum",
    "problems_by_group",
]
