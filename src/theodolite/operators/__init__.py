"""Where the model meets linear algebra: Hessian, GGN and gradient covariance as operators."""

from theodolite.operators.certificate import Certificate
from theodolite.operators.covariance import GradientCovariance
from theodolite.operators.ggn import GGN
from theodolite.operators.hessian import Hessian
from theodolite.operators.problem_operator import ProblemOperator

__all__ = ["GGN", "Certificate", "GradientCovariance", "Hessian", "ProblemOperator"]
