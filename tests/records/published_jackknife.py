"""The delete-m jackknife as it was published, an oracle."""

import numpy as np


def published(left_out, whole, weights):
    """Busing et al. (1999), equations as printed."""
    h = weights.sum() / weights
    jackknife = len(h) * whole - sum((1 - 1 / each) * value for each, value in zip(h, left_out, strict=True))
    pseudo = [each * whole - (each - 1) * value for each, value in zip(h, left_out, strict=True)]
    return np.sqrt(np.mean([(one - jackknife) ** 2 / (each - 1) for each, one in zip(h, pseudo, strict=True)], axis=0))
