"""How many products the sharpness will take, before it is measured for the first time."""

from __future__ import annotations

from torch.optim import Optimizer

from theodolite.measures.rules import Rule, rule_of
from theodolite.problem import Problem

# On networks of two layers, to a residual of 1e-2, readings took 13 to 30 products under SGD and 24 to 48 under AdamW. The
# graphs of all chunks, the gradient and the recomputed residual come on top, in units of a product.
LANCZOS_PRODUCTS = 20
OTHER_PRODUCTS = 6


def expected_products(problem: Problem, optimizer: Optimizer, *, max_products: int) -> int:
    """Products that a reading of stability is worth; Lanczos runs twice where the bound needs an eigenvalue of its own."""
    rule = rule_of(optimizer, problem)
    runs = 2 if isinstance(rule, Rule) and rule.shift is None else 1
    return OTHER_PRODUCTS + runs * min(LANCZOS_PRODUCTS, max_products)
