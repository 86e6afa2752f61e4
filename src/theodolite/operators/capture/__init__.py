"""Per-sample gradients of unmodified models: operations are intercepted where parameters meet data.

``capture(problem, chunk)`` runs the model once. ``captured.uses(cotangent)`` runs one backward pass, of the loss or from any
gradient of the outputs, and returns a ``Use`` for every operation that reads a parameter::

    for chunk in problem.chunks():
        captured = capture(problem, chunk)
        for use in captured.uses():                    # cotangent=None: of the summed loss of the chunk
            use.parameter, use.kind, use.site          # "0.weight", "linear", 3: weight and bias of one operation share a site
            use.block                                  # which part of the parameter (usually all)
            use.gram(other=None), use.norms()          # (b, c) and (b,) of this use
            use.dots(direction), use.materialise(rows) # ⟨g_i, d⟩ and the gradients themselves
        captured.merged()                              # {parameter: uses with disjoint blocks}: Gram matrices add up

Linear layers and convolutions are ``Factored`` with ``A (b, t, k)``, the inputs (unfolded for a convolution), and ``D (b, t, l)``,
the gradients of the outputs; embeddings are ``Lookup`` with ``ids (b, t)`` and ``D (b, t, k)``; everything else is ``Rows``.
Gradients are those of each sample's part of the summed loss: nothing is divided by weights.

``sample_gram(problem)`` is the Gram matrix of all samples, scaled so that their mean is the gradient of the problem, with two
checks by plain autograd.
"""

from theodolite.operators.capture.captured import Captured, capture
from theodolite.operators.capture.factored import Factored
from theodolite.operators.capture.gram import SampleGram, sample_gram
from theodolite.operators.capture.lookup import Lookup
from theodolite.operators.capture.rows import Rows
from theodolite.operators.capture.use import Block, Use

__all__ = ["Block", "Captured", "Factored", "Lookup", "Rows", "SampleGram", "Use", "capture", "sample_gram"]
