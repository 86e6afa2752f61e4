import re
from html import unescape

import numpy as np

from records.record_samples import spectrum
from theodolite.records import Scalars, Stability

NAN = float("nan")


def rows(record) -> dict[str, str]:
    found = re.findall(r"<tr><th[^>]*>(.*?)</th><td[^>]*>(.*?)</td></tr>", record._repr_html_())
    return {name: unescape(text) for name, text in found}


def test_what_was_not_estimated_is_left_out_and_comes_with_its_error_once_it_was():
    assert not {"trace", "trace_stderr", "radius"} & rows(spectrum()).keys()
    assert rows(spectrum(trace=40.0, trace_stderr=2.0, radius=12.5))["trace"] == "40 ± 2"


def test_nan_is_a_reading_where_the_field_was_measured():
    assert rows(Scalars(values={"loss": NAN}))["values"] == "loss: nan"
    numbers = dict.fromkeys(
        ("loss_stderr", "gradient_norm", "sharpness", "sharpness_stderr", "residual", "preconditioned_sharpness"), 1.0
    )
    words = {"optimizer": "SGD", "rule": "2/lr", "converged": True}
    reading = Stability(
        loss=NAN, tol=0.1, threshold=1.0, ratio=NAN, learning_rate=0.1, momentum=0.0, **numbers, **words
    )
    shown = rows(reading)
    assert (shown["loss"], shown["ratio"]) == ("nan ± 1", "nan")
    assert "bound" not in shown


def test_parameters_are_names_with_shapes_and_of_many_the_count():
    parameters = tuple((f"layers.{index}.weight", (16, 3)) for index in range(29))
    few = rows(spectrum(parameters=(("conv.weight", (16, 1, 3, 3)), ("conv.bias", (16,)), ("scale", ()))))
    assert few["parameters"] == "conv.weight (16×1×3×3), conv.bias (16), scale (scalar)"
    many = rows(spectrum(parameters=parameters))["parameters"]
    assert many.startswith("layers.0.weight (16×3), ")
    assert many.endswith("layers.3.weight (16×3), … 29 in all")


def test_arrays_are_told_by_type_shape_and_first_entries():
    assert rows(spectrum())["converged"] == f"bool {np.shape(spectrum().converged)}: True, True, True"
