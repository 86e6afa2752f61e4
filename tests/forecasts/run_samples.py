"""Stability readings and losses by hand."""

from theodolite.records import Scalars, Stability


def reading(step, ratio, **changes):
    """A converged reading of gradient descent at learning rate 0.1, whose sharpness gives the ratio."""
    values = {
        "loss": 1.0,
        "loss_stderr": 0.1,
        "gradient_norm": 3.0,
        "sharpness": 20.0 * ratio,
        "sharpness_stderr": float("nan"),
        "residual": 1e-4,
        "converged": True,
        "tol": 1e-3,
        "preconditioned_sharpness": 20.0 * ratio,
        "threshold": 20.0,
        "ratio": ratio,
        "learning_rate": 0.1,
        "momentum": 0.0,
        "optimizer": "SGD",
        "rule": "2/lr",
    }
    return Stability(step=step, **(values | changes))


def loss(step, value, name="loss"):
    """A line of the training loop."""
    return Scalars(step=step, values={name: float(value)})


def losses(*values, every=10):
    """Lines of the training loop from step 0 on."""
    return [loss(index * every, value) for index, value in enumerate(values)]


def readings(*ratios, every=10):
    """Readings from step 0 on."""
    return [reading(index * every, ratio) for index, ratio in enumerate(ratios)]
