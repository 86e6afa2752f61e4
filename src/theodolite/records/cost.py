"""What a measurement cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The price of a record, in passes over the whole data of its problem and in seconds.

    Args:
        products: operator-vector products.
        gradients: forward and backward passes (one gradient each).
        forwards: forward-only passes.
        seconds: wall-clock time.
    """

    products: float = 0.0
    gradients: float = 0.0
    forwards: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            products=self.products + other.products,
            gradients=self.gradients + other.gradients,
            forwards=self.forwards + other.forwards,
            seconds=self.seconds + other.seconds,
        )

    def __str__(self) -> str:
        parts = [
            f"{value:g} {name if value != 1 else name[:-1]}"
            for name, value in (("products", self.products), ("gradients", self.gradients), ("forwards", self.forwards))
            if value
        ]
        return ", ".join([*parts, f"{self.seconds:.3g} s"])
