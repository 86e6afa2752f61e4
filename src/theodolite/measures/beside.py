"""What a Krylov run and probes of its complement say beside the eigenpairs, as fields of a record."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from theodolite.linalg import Decomposition, Quadrature
from theodolite.measures.subject import Remembering
from theodolite.records.jackknife import jackknife_stderr


def beside_the_pairs(whole: Decomposition, A: Remembering, *, layers: tuple[str, ...], random: bool) -> dict[str, Any]:
    """Trace, whole and by layer, Frobenius norm, density, by field of ``Spectrum``.

    Args:
        whole: of A, with the layers as parts.
        A: which remembers the products that ``whole`` was made of, and no others.
        layers: names of the parts.
        random: whether the run began at a random vector.
    """
    frobenius, frobenius_stderr = whole.frobenius
    fields: dict[str, Any] = {
        "trace": whole.trace.value,
        "trace_stderr": whole.trace.stderr,
        "trace_data_stderr": _trace_data_stderr(whole, A),
        "frobenius": frobenius,
        "frobenius_stderr": frobenius_stderr,
        "layers": layers,
        "layer_traces": whole.trace.parts.numpy(),
        "layer_trace_stderrs": whole.trace.part_stderrs.numpy(),
        "probes": len(whole.trace.samples),
    }
    if random:
        fields |= {"krylov_nodes": whole.pairs.nodes.numpy(), "krylov_weights": whole.pairs.weights.numpy()}
    if whole.quadrature is not None:
        nodes, weights = whole_rules(whole.quadrature)
        fields |= {"nodes": nodes, "weights": weights, "deflated": len(whole.quadrature.known)}
    return fields


def whole_rules(quadrature: Quadrature) -> tuple[Float[np.ndarray, "m s"], Float[np.ndarray, "m s"]]:
    """Nodes and weights that stand for all eigenvalues: in front of each rule those that are known, 1/n each."""
    probes, known = len(quadrature.nodes), quadrature.known
    share = quadrature.unknown / quadrature.size
    nodes = torch.cat([known.expand(probes, -1), quadrature.nodes], dim=1)
    weights = torch.cat([known.new_full((probes, len(known)), 1 / quadrature.size), share * quadrature.weights], dim=1)
    return nodes.numpy(), weights.numpy()


def _trace_data_stderr(whole: Decomposition, A: Remembering) -> float:
    """The jackknife of the trace over chunks, with the same basis and probes.

    The trace is the sum of the forms of the basis vectors, and the mean of those of the probes. After a restart the basis is
    not what was multiplied, and the error is not known.
    """
    if whole.pairs.restarts:
        return float("nan")
    of_basis, of_probes = A.left_out.tensor_split([whole.pairs.products], dim=1)
    without = of_basis.sum(dim=1)
    if of_probes.shape[1]:
        without = without + of_probes.mean(dim=1)
    return float(jackknife_stderr(without.numpy(), whole=np.asarray(whole.trace.value), weights=A.weights.numpy()))
