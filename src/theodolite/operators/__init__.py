"""Where the model meets linear algebra: Hessian, GGN and gradient covariance as operators."""
