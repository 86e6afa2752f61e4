import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecasts.run_samples import loss, losses, reading, readings
from theodolite.forecasts import edge_of_stability

NAN, INF = float("nan"), float("inf")


def only(records):
    (finding,) = edge_of_stability(records)
    return finding


def test_the_first_crossing_is_named_with_what_came_before():
    finding = only(readings(0.5, 0.8, 0.97, 1.03, 1.4))
    assert finding.step == 30
    assert finding.severity == "warning"
    assert (
        finding.title
        == "The sharpness crossed the stability bound at step 30 and is above it at the end: ratio 1.4 at step 40"
    )
    assert finding.evidence["ratio"] == 1.03
    assert (finding.evidence["step_before"], finding.evidence["ratio_before"]) == (20, 0.97)
    assert "At step 30 the sharpness was 20.6 against the bound 20 of SGD (2/lr): ratio 1.03." in finding.message
    assert "above 1 in 2 of 2 readings, last at step 40, and at most 1.4 (at step 40)" in finding.message


@settings(deadline=None)
@given(
    ratios=st.lists(st.floats(0.01, 3.0).filter(lambda ratio: ratio != 1), min_size=1, max_size=12),
    shuffle=st.randoms(use_true_random=False),
)
def test_the_crossing_step_is_the_first_above_one_in_any_order_of_records(ratios, shuffle):
    records = readings(*ratios)
    expected = next((index * 10 for index, ratio in enumerate(ratios) if ratio > 1), int(np.argmax(ratios)) * 10)
    shuffle.shuffle(records)
    assert only(records).step == expected


def test_a_loss_that_leaves_its_range_after_the_crossing_is_critical():
    records = [*readings(0.5, 0.9, 1.1, 1.8), *losses(2.3, 2.0, 1.5, 2.2, 4.5, 4.7, NAN)]
    finding = only(records)
    assert finding.severity == "critical"
    assert (
        finding.title == "The sharpness crossed the stability bound at step 20, and the loss left its range at step 50"
    )
    assert finding.evidence["loss_left_step"] == 50
    assert finding.evidence["steps_of_warning"] == 30
    assert finding.evidence["loss_limit"] == 4.6
    assert "left its range at step 50 with 4.7 and ended outside, at nan" in finding.message
    assert "finite and at most 4.6 (the highest loss up to step 20, 2.3, doubled)" in finding.message
    assert "the crossing came 30 steps before" in finding.message


@pytest.mark.parametrize(("last", "left"), [(4.6, False), (4.61, True), (NAN, True), (INF, True), (-INF, True)])
def test_the_range_ends_at_twice_the_highest_loss_before(last, left):
    finding = only([*readings(0.9, 1.1, 1.5), *losses(2.3, 1.0, last)])
    assert (finding.severity == "critical") is left


def test_negative_losses_have_a_range_as_wide_as_they_are_large_or_spread():
    def severity(last):
        return only([reading(0, 0.9, loss=-4.0), reading(10, 1.5, loss=-3.0), *losses(-5.0, -3.0, last)]).severity

    assert severity(-0.01) == "warning"
    assert severity(0.01) == "critical"


def test_the_loss_of_the_probe_set_counts_as_well():
    records = [reading(0, 0.9, loss=1.0), reading(10, 1.2, loss=1.0), reading(20, 4.0, loss=2.1)]
    finding = only(records)
    assert finding.severity == "critical"
    assert finding.evidence["loss"] == "loss of the probe set"
    assert finding.evidence["steps_of_warning"] == 10


def test_each_loss_has_a_range_of_its_own():
    calm = [*readings(0.9, 1.1, 1.5), *losses(100.0, 90.0, 80.0)]
    assert only(calm).severity == "warning"
    other = [loss(step, value, "val_loss") for step, value in ((0, 1.0), (10, 1.0), (20, 3.0))]
    assert only([*calm, *other]).evidence["loss"] == "'val_loss'"
    assert only([*calm, loss(20, 1e9, "learning rate")]).severity == "warning"


def test_losses_before_the_crossing_do_not_count():
    records = [*readings(0.5, 0.6, 0.7, 1.1, 1.5), *losses(1.0, 50.0, 1.0, 1.0, 60.0)]
    assert only(records).severity == "warning"


def test_a_loss_that_came_back_is_said_to_have():
    finding = only([*readings(0.9, 1.4, 0.7, 0.6), *losses(2.0, 2.0, 9.0, 1.0)])
    assert finding.severity == "critical"
    assert "left its range at step 20 with 9 and ended inside again, at 1" in finding.message


def test_hovering_at_the_edge_is_information_and_normal():
    finding = only([*readings(0.3, 0.8, 1.02, 1.1, 0.95, 1.05), *losses(2.0, 1.5, 1.1, 0.9, 0.8, 0.7)])
    assert finding.severity == "info"
    assert (
        finding.title
        == "The sharpness crossed the stability bound at step 20 and hovers there: ratio 0.95 to 1.1 since"
    )
    assert "which is normal (Cohen et al. 2021)" in finding.advice
    assert "Cohen et al. 2021" in finding.reference
    assert finding.evidence["readings_above"] == 3
    assert finding.evidence["steps_above"] == 30


def test_hovering_takes_three_readings_within_a_fifth():
    assert only(readings(0.8, 1.1, 1.1)).severity == "warning"
    assert only(readings(0.8, 1.1, 1.1, 1.1)).severity == "info"
    assert only(readings(0.8, 1.1, 1.1, 1.3)).severity == "warning"


def test_coming_back_below_is_information():
    finding = only(readings(1.5, 1.3, 0.6))
    assert finding.severity == "info"
    assert (
        finding.title == "The sharpness crossed the stability bound at step 0 and came back below: ratio 0.6 at step 20"
    )


def test_what_did_not_converge_may_have_crossed_unless_its_error_is_too_small_to_matter():
    doubtful = reading(10, 1.05, converged=False, residual=0.1)
    finding = only([reading(0, 0.9), doubtful])
    assert finding.title.startswith("The sharpness may have crossed the stability bound at step 10")
    assert "It did not converge: residual 0.1, tolerance 0.001. No later reading settles it." in finding.message
    finding = only([reading(0, 0.9), doubtful, reading(20, 1.1), reading(30, 1.5)])
    assert "The first reading beyond doubt is at step 20." in finding.message
    assert "may have" not in only([reading(10, 1.5, converged=False, residual=0.1)]).title
    flipped_by_data = reading(10, 1.5, converged=False, residual=0.1, sharpness_stderr=6.0)  # 1.5 ± 0.3
    assert "may have" in only([flipped_by_data]).title


def test_a_converged_reading_crossed_however_closely():
    close = reading(10, 1.001, residual=5e-3, tol=1e-2, sharpness_stderr=2.0)
    assert only([reading(0, 0.9), close]).title.startswith("The sharpness crossed the stability bound at step 10")


def test_the_error_of_the_data_is_said_where_it_reaches_the_bound():
    finding = only([reading(0, 1.1, sharpness_stderr=2.0)])
    assert "ratio 1.10 ± 0.10" in finding.message
    assert "The error of the data reaches below 1" in finding.message
    assert finding.evidence["ratio_stderr"] == pytest.approx(0.1)
    assert "error of the data" not in only([reading(0, 1.5, sharpness_stderr=2.0)]).message


def test_the_advice_gives_the_learning_rate_that_the_sharpness_allows():
    finding = only([reading(0, 0.5), reading(10, 1.25), *losses(1.0, 1.0, NAN)])
    assert "Lower the learning rate from 0.1 to less than 0.08 (lr / ratio, at step 10)" in finding.advice
    assert "Clipping the gradient norm at 2.4" in finding.advice  # 3.0 / 1.25
    assert finding.evidence["learning_rate_allowed_first"] == pytest.approx(0.2)
    assert finding.evidence["learning_rate_allowed_crossing"] == pytest.approx(0.08)


def test_the_sharpness_after_the_loss_has_gone_advises_nothing():
    finding = only([reading(0, 0.5), reading(10, 1.25), reading(30, 1000.0), *losses(1.0, 1.0, 1e6, NAN)])
    assert "less than 0.08" in finding.advice
    assert finding.evidence["largest_ratio"] == 1.25


def test_a_run_that_starts_across_is_advised_to_warm_up():
    finding = only(readings(2.0, 1.9))
    assert "warm up from below 0.05" in finding.advice
    assert "Gilmer et al. 2021" in finding.advice


def test_momentum_keeps_its_own_bound():
    finding = only([reading(0, 1.2, momentum=0.9, threshold=38.0, sharpness=45.6, preconditioned_sharpness=45.6,
                            rule="2(1+β)/lr")])  # fmt: skip
    assert "45.6 against the bound 38 of SGD (2(1+β)/lr): ratio 1.2" in finding.message
    assert finding.evidence["learning_rate_allowed_crossing"] == pytest.approx(0.1 / 1.2)


def test_the_adam_form_speaks_of_the_preconditioner_and_not_of_clipping():
    finding = only([reading(0, 1.25, sharpness=9.0, preconditioned_sharpness=47_500.0, threshold=38_000.0,
                            learning_rate=1e-3, momentum=0.9, optimizer="AdamW", rule="2(1+β₁)/((1−β₁)·lr)")])  # fmt: skip
    assert "the preconditioned sharpness was 4.75e+04 against the bound 3.8e+04 of AdamW" in finding.message
    assert "less than 0.0008 (lr / ratio at the preconditioner of that step, at step 0)" in finding.advice
    assert "Clipping gradients hardly helps" in finding.advice


def test_weight_decay_of_sgd_is_no_preconditioner():
    finding = only([reading(0, 1.25, preconditioned_sharpness=25.01)])
    assert "the sharpness was 25.01 against the bound 20" in finding.message
    assert "Clipping the gradient norm at 2.4" in finding.advice


def test_headroom_is_reported_where_nothing_crossed():
    finding = only(readings(0.2, 0.5, 0.4))
    assert finding.severity == "info"
    assert finding.title == "The sharpness stayed below the stability bound: ratio at most 0.5"
    assert finding.step == 10
    assert finding.evidence["headroom"] == 2.0
    assert "could rise from 0.1 to 0.2 (lr / ratio)" in finding.advice


def test_headroom_is_not_promised_beyond_what_was_measured():
    assert "did not converge (residual 0.3)" in only([reading(0, 0.9, converged=False, residual=0.3)]).message
    assert "The error of the data reaches 1" in only([reading(0, 0.9, sharpness_stderr=2.0)]).message
    assert "limits no learning rate" in only(readings(-0.5)).advice
    finding = only([*readings(0.2, 0.5), *losses(1.0, 9.0)])
    assert finding.severity == "warning"
    assert finding.title.endswith("ratio at most 0.5, yet the loss left its range at step 10")
    assert "could rise" not in finding.advice


def test_headroom_pairs_value_and_error():
    evidence = only([reading(0, 0.2), reading(10, 0.5, sharpness_stderr=2.0), reading(20, 0.3)]).evidence
    assert (evidence["largest_ratio"], evidence["largest_ratio_stderr"]) == (0.5, pytest.approx(0.1))
    evidence = only([reading(0, 1.1, sharpness_stderr=2.0), reading(10, 1.5, sharpness_stderr=3.0)]).evidence
    assert (evidence["ratio"], evidence["ratio_stderr"]) == (1.1, pytest.approx(0.1))
    assert (evidence["largest_ratio"], evidence["largest_ratio_stderr"]) == (1.5, pytest.approx(0.15))


def at_rest(step, sharpness, **changes):
    """A reading at learning rate 0, as at the first step of a warm-up."""
    values = {
        "sharpness": sharpness,
        "preconditioned_sharpness": sharpness,
        "threshold": INF,
        "learning_rate": 0.0,
        "bound": 2.0,
    }
    return reading(step, 0.0, **(values | changes))  # fmt: skip


def test_at_learning_rate_zero_the_sharpness_allows_a_rate():
    finding = only([at_rest(0, 10.0)])
    assert (
        finding.advice == "The learning rate was 0 at step 0; the sharpness there would allow 0.2 (bound / sharpness)."
    )
    assert finding.evidence["learning_rate_allowed"] == pytest.approx(0.2)
    assert "limits no learning rate" in only([at_rest(0, -1.0)]).advice
    assert only([at_rest(0, 10.0, bound=NAN)]).advice == "The learning rate was 0 at step 0: nothing can cross there."


def test_a_warm_up_from_zero_is_advised_by_bound_over_sharpness():
    finding = only([at_rest(0, 16.0), reading(10, 1.25), *losses(1.0, 1.0, NAN)])
    assert finding.evidence["learning_rate_allowed_first"] == pytest.approx(0.125)
    assert (
        "the rate rose from 0 to 0.1 since the first reading, which allowed 0.125, and the sharpness grew"
        in finding.advice
    )
    assert "inf" not in finding.advice
    unknown = only([at_rest(0, 10.0, bound=NAN), reading(10, 1.25), *losses(1.0, 1.0, NAN)])
    assert "less than 0.08 (lr / ratio, at step 10)" in unknown.advice
    assert "nan" not in unknown.advice
    steepest = only([at_rest(0, 100.0), reading(10, 1.05), *losses(1.0, 1.0, NAN)])
    assert "less than 0.02 (bound / sharpness, at step 0)" in steepest.advice


def test_what_led_to_the_crossing_is_said_as_it_was():
    def advice(first, crossing):
        return only([first, crossing, *losses(1.0, 1.0, NAN)]).advice

    sharpened = advice(reading(0, 0.5), reading(10, 1.25))
    assert "decay the rate before that step: the first reading allowed 0.2, and the sharpness grew since" in sharpened
    assert "rose" not in sharpened
    faster = {"learning_rate": 0.4, "threshold": 5.0}
    rate_alone = advice(reading(0, 0.5), reading(10, 1.25, **faster, sharpness=6.25, preconditioned_sharpness=6.25))
    assert "the rate rose from 0.1 to 0.4 since the first reading, which allowed 0.2" in rate_alone
    assert "sharpness grew" not in rate_alone
    both = advice(reading(0, 0.5), reading(10, 10.0, **faster, sharpness=50.0, preconditioned_sharpness=50.0))
    assert "the rate rose from 0.1 to 0.4 since the first reading, which allowed 0.2, and the sharpness grew" in both
    momentum = advice(reading(0, 0.5, momentum=0.9, threshold=38.0, sharpness=19.0, preconditioned_sharpness=19.0),
                      reading(10, 1.25, sharpness=19.0, preconditioned_sharpness=19.0, threshold=15.2))  # fmt: skip
    assert "grew" not in momentum
    assert "rose" not in momentum
    assert "the first reading allowed 0.2, the bound fell since" in momentum


@pytest.mark.parametrize(("chunks", "said"), [(2, True), (4, True), (5, False), (100, False), (None, False)])
def test_errors_from_few_chunks_are_said_to_be(chunks, said):
    context = {} if chunks is None else {"chunks": chunks}
    words = f"The error of the data rests on only {chunks} chunks"
    for ratio in (0.95, 1.05):
        assert (words in only([reading(0, ratio, sharpness_stderr=2.0, context=context)]).message) is said
        assert words not in only([reading(0, ratio, context=context)]).message


def test_a_single_survey_has_no_steps():
    finding = only([reading(None, 1.3)])
    assert finding.title == "The sharpness is above the stability bound: ratio 1.3"
    assert finding.step is None
    assert only([reading(None, 1.01, converged=False, residual=0.1)]).title.startswith("The sharpness may be above")


def test_an_unknown_rule_is_not_judged():
    unknown = {
        "threshold": NAN,
        "sharpness": 20.0,
        "preconditioned_sharpness": NAN,
        "optimizer": "Muon",
        "rule": "no rule for Muon",
    }
    finding = only([reading(0, NAN, **unknown), reading(10, NAN, **unknown)])
    assert finding.title == "The stability bound of Muon is not known"


def test_readings_that_are_nan_do_not_hide_the_others():
    records = [*readings(0.5, 1.2), reading(20, NAN), *losses(1.0, 1.0, NAN)]
    assert only(records).evidence["steps_of_warning"] == 10
    assert list(edge_of_stability([reading(0, NAN, threshold=NAN)])) == []
    infinite = only([reading(0, 0.5), reading(10, INF)])
    assert infinite.evidence["learning_rate_allowed_crossing"] == 0


def test_without_readings_there_is_nothing_to_say():
    assert list(edge_of_stability([])) == []
    assert list(edge_of_stability(losses(1.0, NAN))) == []


def test_unsorted_records_give_the_same_finding():
    records = [*readings(0.5, 0.9, 1.1, 1.8), *losses(2.3, 2.0, 1.5, 2.2, 4.5, 4.7, NAN)]
    shuffled = records.copy()
    random.Random(3).shuffle(shuffled)
    assert str(only(shuffled)) == str(only(records))
