"""Where the model meets linear algebra: Hessian, GGN and gradient covariance as operators."""

from theodolite.operators.certificate import Certificate
from theodolite.operators.covariance import GradientCovariance
from theodolite.operators.fisher import Fisher
from theodolite.operators.ggn import GGN
from theodolite.operators.grouped import Grouped, problems_by_group
from theodolite.operators.hessian import Hessian
from theodolite.operators.input_hessian import InputHessian
from theodolite.operators.jacobian import Jacobian
from theodolite.operators.layer_blocks import LayerBlocks
from theodolite.operators.mfac import MFAC
from theodolite.operators.preconditioned import PreconditionedHessian
from theodolite.operators.problem_operator import ProblemOperator

__all__ = [
    "GGN",
    "MFAC",
    "Certificate",
    "Fisher",
    "GradientCovariance",
    "Grouped",
    "Hessian",
    "InputHessian",
    "Jacobian",
    "LayerBlocks",
    "PreconditionedHessian",
    "ProblemOperator",
    "problems_by_group",
]
