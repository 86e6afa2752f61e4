"""BLEU and ROUGE: hand values, corpora against sentences, several references, and what is refused."""

from __future__ import annotations

import math
import sys

import jaxtyping
import pytest

from theodolite import losses

SHORT, LONG = "a b c d e", "a b c d e f g h i j"


def test_bleu_of_a_prefix_is_its_brevity_penalty() -> None:
    assert losses.bleu([SHORT], [LONG]) == pytest.approx(100 * math.exp(1 - 10 / 5))
    assert losses.bleu([LONG], [LONG]) == pytest.approx(100)


def test_bleu_counts_over_the_corpus_and_is_not_the_mean_of_sentences() -> None:
    pair = losses.bleu([SHORT, LONG], [LONG, LONG])
    assert pair == pytest.approx(100 * math.exp(1 - 20 / 15))
    assert pair != pytest.approx((losses.bleu([SHORT], [LONG]) + 100) / 2, rel=1e-2)


def test_another_reference_never_lowers_a_score() -> None:
    hypothesis, references = ["the cat sat on the mat"], ["the cat is on the mat", "the cat sat on a mat"]
    for score in (losses.bleu, losses.rouge):
        assert score(hypothesis, [references]) >= max(score(hypothesis, [one]) for one in references) - 1e-12


def test_hypotheses_may_have_different_numbers_of_references() -> None:
    assert losses.bleu([LONG, LONG], [[LONG], [SHORT, LONG]]) == pytest.approx(100)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("rouge1", 2 * 1 * 0.5 / 1.5), ("rouge2", 2 * 1 * (4 / 9) / (13 / 9)), ("rougeL", 2 * 1 * 0.5 / 1.5)],
)
def test_rouge_of_a_prefix(kind: str, expected: float) -> None:
    assert losses.rouge([SHORT], [LONG], kind=kind) == pytest.approx(expected)


def test_subsequences_ignore_what_is_between_and_keep_the_order() -> None:
    assert losses.rouge(["a x b y c"], ["a b c"]) == pytest.approx(2 * 0.6 / 1.6)
    assert losses.rouge(["c b a"], ["a b c"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("score", [losses.bleu, losses.rouge])
def test_bad_input_is_named(score) -> None:
    with pytest.raises(ValueError, match="found a single text"):
        score("a b", ["a b"])
    with pytest.raises(ValueError, match="found 2 hypotheses and references for 1"):
        score(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="at least one"):
        score([], [])


def test_an_unknown_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="rouge1, rouge2"):
        losses.rouge(["a"], ["a"], kind="rouge9")


@pytest.mark.parametrize(
    ("score", "module"), [(losses.bleu, "sacrebleu.metrics.bleu"), (losses.rouge, "rouge_score.rouge_scorer")]
)
def test_a_missing_library_says_how_to_get_it(score, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"theodolite\[text\]"):
        score(["a"], ["a"])
