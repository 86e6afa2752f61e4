"""Where the model meets linear algebra: Hessian, GGN and gradient covariance as operators."""

from theodolite.operators.certificate import Certificate
from theodolite.operators.covariance import GradientCovariance
from theodolite.operators.ggn import GGN
from theodolite.operators.hessian import Hessian
from theodolite.operators.mfac import MFAC
from theodolite.operators.problem_operator import ProblemOperator

__all__ = ["GGN", "MFAC", "Certificate", "GradientCovariance", "Hessian", "ProblemOperator"]
