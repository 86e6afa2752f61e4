import io
import math

import numpy as np
from rich.console import Console

from reports import runs_by_hand
from theodolite.forecasts import Finding
from theodolite.records import Cost, Event
from theodolite.reports import terminal
from theodolite.reports.facts import facts, workings
from theodolite.reports.overview import costs_table, events_table
from theodolite.reports.rows import MOST_ROWS, gradients_table, landscape_table, spectrum_tables, stability_table
from theodolite.reports.sections import sections
from theodolite.reports.tables import evidence_rows, terminal_table

FINDING = Finding(
    rule="edge of stability",
    severity="critical",
    title="The sharpness crossed [bold]the bound[/bold]",
    message="It was 9.1 against 7.6.",
    advice="Lower the learning rate.",
    evidence={"ratio": 1.2, "ratio_stderr": 0.07, "readings": 1200, "loss": "training loss", "value": math.nan},
    step=1260,
)


def printed(what) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(what)
    return console.export_text()


def test_evidence_joins_a_value_with_its_error():
    assert evidence_rows(FINDING) == [
        ("ratio", "1.200 ± 0.070"),
        ("readings", "1,200"),
        ("loss", "training loss"),
        ("value", "not a number"),
    ]


def test_findings_in_the_terminal_say_severity_step_and_advice():
    text = printed(terminal([FINDING]))
    for words in ("critical at step 1,260", "[bold]the bound[/bold]", "What to do: Lower", "ratio 1.200 ± 0.070"):
        assert words in text
    assert "No rule found anything" in printed(terminal([]))


def test_a_table_in_the_terminal_holds_every_cell():
    table = spectrum_tables(runs_by_hand.spectrum(converged=False))[0]
    text = printed(terminal_table(table))
    assert all(cell in text for row in table.rows for cell in row)


def test_eigenvalues_are_counted_from_both_ends_and_say_whether_they_converged():
    rows = spectrum_tables(runs_by_hand.spectrum(converged=False))[0].rows
    assert [row[0] for row in rows] == ["λ₁", "λ₂", "λ₃", "λ₄", "λₙ₋₂", "λₙ₋₁", "λₙ"]
    convex = runs_by_hand.spectrum().replace(eigenvalues=np.arange(7.0, 0, -1))
    assert [row[0] for row in spectrum_tables(convex)[0].rows][-2:] == ["λₙ₋₁", "λₙ"]
    assert spectrum_tables(convex.replace(which="smallest"))[0].rows[0][0] == "λₙ₋₆"
    assert spectrum_tables(convex.replace(which="largest"))[0].rows[-1][0] == "λ₇"
    assert [row[1] for row in rows].count("not converged") == 3
    assert rows[0][2] == "52.3 ± 2.6"


def test_a_long_series_keeps_its_extreme_ratio():
    rng = np.random.default_rng(0)
    readings = [runs_by_hand.stability(i, loss=1.0, sharpness=1.0, rate=0.1, rng=rng) for i in range(500)]
    readings[321] = readings[321].replace(ratio=7.25)
    table = stability_table(readings)
    assert len(table.rows) <= MOST_ROWS
    ratio = table.columns.index("ratio")
    assert [row[0] for row in table.rows if row[ratio].startswith("7.25")] == ["321"]
    assert f"{500 - len(table.rows)} probes between these are in the log" in table.note


def test_a_column_that_never_changes_becomes_a_sentence():
    rng = np.random.default_rng(0)
    readings = [runs_by_hand.stability(i, loss=1.0, sharpness=1.0, rate=0.1, rng=rng) for i in range(4)]
    table = stability_table(readings)
    assert table.columns == ("step", "loss", "λ₁", "ratio", "residual")
    for words in (
        "Every eigenpair converged.",
        "Throughout, the bound is 38.",
        "Throughout, the learning rate is 0.1.",
    ):
        assert words in table.note
    readings[2] = readings[2].replace(converged=False, learning_rate=0.2, preconditioned_sharpness=7.0)
    table = stability_table(readings)
    assert table.columns == ("step", "eigenpair", "loss", "λ₁", "preconditioned", "ratio", "residual", "lr")
    assert [row[1] for row in table.rows] == ["✓", "✓", "not converged", "✓"]
    lost = stability_table([reading.replace(converged=False) for reading in readings])
    assert "No eigenpair converged." in lost.note


def test_a_reading_without_a_bound_is_no_failure_in_the_table_and_a_lost_one_is():
    rng = np.random.default_rng(0)
    first, second = (runs_by_hand.stability(i, loss=1.0, sharpness=1.0, rate=0.1, rng=rng) for i in range(2))
    unknown = {"ratio": math.nan, "threshold": math.nan, "preconditioned_sharpness": math.nan}
    table = stability_table([first.replace(**unknown), second])
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert (cells["bound"], cells["ratio"]) == ("—", "—")
    assert "no bound yet" in table.note
    lost = stability_table([first.replace(**unknown, sharpness=math.nan), second])
    assert dict(zip(lost.columns, lost.rows[0], strict=True))["ratio"] == "not a number"


def test_the_whole_stands_above_the_layers():
    record = runs_by_hand.gradients()
    rows = gradients_table(record).rows
    assert rows[0][0] == "whole"
    assert [row[0] for row in rows[1:]] == list(record.layers)


def test_a_surface_says_where_it_is_lowest():
    rows = dict(landscape_table(runs_by_hand.plane(broken=True)).rows)
    assert rows["lowest loss"] == "0.02 at α = 0, β = 0"
    assert rows["points not finite"] == "137"


def test_costs_add_up():
    records = runs_by_hand.stable_run()
    *kinds, total = costs_table(records).rows
    expected = sum((record.cost for record in records), Cost())
    assert total[0] == "all"
    assert total[2] == f"{expected.products:,.0f}"
    assert sum(int(row[1].replace(",", "")) for row in kinds) == int(total[1].replace(",", ""))


def test_equal_events_share_a_row():
    records = [Event(step=step, name="probe deferred", message="budget spent") for step in (30, 10, 20)]
    assert events_table(records).rows == (("probe deferred", "budget spent", "10 to 30", "3"),)


def test_facts_list_every_value_once():
    records = runs_by_hand.survey(seed=3)
    changed = records[0].replace(context={**records[0].context, "mode": "train"})
    found = dict(facts((changed, *records[1:])))
    assert found["mode"] == "train, eval"
    assert found["parameters"] == "19,706"
    assert found["seeds"] == "3"
    assert next(iter(found)) == "model"


def test_samples_say_which_measures_took_them():
    few = runs_by_hand.plane(context={**runs_by_hand.CONTEXT, "samples": 128})
    assert dict(facts((*runs_by_hand.survey(seed=0), few)))["samples"] == "128 for plane, 1,024 for the rest"


def test_workings_stand_apart_and_those_that_differ_in_figures_alone_are_counted():
    texts = (
        "vmap, since it took 0.61 of the time",
        "vmap, since it took 0.4 of the time",
        "loop, since it took 2 times",
    )
    records = [runs_by_hand.trace(context={"blocks": text, "chunks": n}) for n, text in enumerate(texts)]
    assert facts(records) == ()
    assert dict(workings(records)) == {
        "blocks": f"{texts[0]} (and 1 alike); {texts[2]}",
        "chunks of the data": "0; 1; 2",
    }


def test_the_last_record_of_each_kind_is_shown():
    early, late = runs_by_hand.gradients(step=10), runs_by_hand.gradients(step=20, scale=7.0)
    (section,) = sections([late, early])
    assert section.name == "layers"
    assert section.blocks[0].origin[0].startswith("Gradients · step 20")


def test_a_spectrum_without_density_keeps_its_table():
    (section,) = sections([runs_by_hand.spectrum()])
    (block,) = section.blocks
    assert block.figure is None
    assert block.tables[0].title == "Extreme eigenvalues of the Hessian"


def test_eigenvalues_of_another_step_are_not_drawn_over_a_density():
    (section,) = sections([runs_by_hand.spectrum(step=1), runs_by_hand.density(step=2)])
    drawn, alone = section.blocks
    assert "Ticks" not in drawn.figure.caption
    assert (drawn.origin[0].startswith("Density · step 2"), alone.figure) == (True, None)
    assert alone.tables[0].title == "Extreme eigenvalues of the Hessian"


def test_one_spectrum_with_probes_gives_density_shape_and_layers():
    whole = runs_by_hand.whole_spectrum(step=3)
    curvature, layers = sections([whole])
    (block,) = curvature.blocks
    assert [table.title for table in block.tables] == [
        "Extreme eigenvalues of the Hessian",
        "Shape of the spectrum of the Hessian",
        "Spectral moments of the Hessian",
    ]
    assert "1 probe of 53 Lanczos steps beside 7 known eigenvalues" in block.figure.caption
    assert "Ticks" in block.figure.caption
    shape = dict(block.tables[1].rows)
    assert shape["how far from convex, −λₙ/λ₁"] == "0.0363"
    assert shape["type"] == whole.type
    assert shape["outliers more than 10 scales above the bulk"] == "4 or more"
    (traces,) = layers.blocks
    assert dict(traces.tables[0].rows) == {"whole": "402 ± 11", "body": "300 ± 10", "head": "102.0 ± 4.0"}
    assert traces.origin == block.origin
    twice = sections([whole, runs_by_hand.density(step=3)])[0].blocks
    assert [len(each.tables) for each in twice] == [3]  # a density of its own takes the place of that beside the pairs
