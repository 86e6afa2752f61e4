"""A loss first logged after the crossing is held to the range that the other losses kept to."""

from __future__ import annotations

from forecasts.run_samples import reading
from theodolite.forecasts.loss_range import excursion
from theodolite.records import Scalars


def test_a_loss_without_a_reading_until_the_crossing() -> None:
    records = [reading(0, ratio=1.2, loss=0.03), reading(10, ratio=1.2, loss=5.0)]
    records += [Scalars(step=step, values={"loss": loss}) for step, loss in ((1, 0.034), (2, 0.068), (3, 0.4))]
    left = excursion(records, after=0)
    assert left is not None
    assert (left.name, left.step) == ("training loss", 2)
    assert left.limit == 0.06
