"""Scores of generated text against references, by the libraries whose figures papers report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

Rouge = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]
INSTALL = 'which is not installed. Install it with: pip install "theodolite[text]"'


def bleu(hypotheses: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]) -> float:
    """Return the BLEU of a corpus, in percent, as SacreBLEU computes it with its own tokenisation (13a).

    The counts of n-grams are summed over the corpus before they are divided: not the mean over sentences.

    Args:
        hypotheses: one text each.
        references: of each hypothesis, one text or several.

    Returns:
        0 to 100.

    Raises:
        ImportError: SacreBLEU is not installed.
        ValueError: other than one entry of references for each hypothesis, or nothing to score.

    Example:
        >>> round(bleu(["the cat sat on the mat"], ["the cat is on the mat"]), 1)
        38.0

    References:
        Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation"; Post 2018, "A Call for
        Clarity in Reporting BLEU Scores".
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise ImportError(f"BLEU needs sacrebleu, {INSTALL}.") from error
    texts = _paired(hypotheses, references)
    most = max(map(len, texts))
    # One list for each place; a hypothesis with fewer references has None there.
    places: Any = [[given[place] if place < len(given) else None for given in texts] for place in range(most)]
    return float(BLEU().corpus_score(list(hypotheses), places).score)


def rouge(
    hypotheses: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]], *, kind: Rouge = "rougeL"
) -> float:
    """Return the mean F-measure of shared n-grams (1, 2) or of the longest common subsequence (L), without stemming.

    Args:
        hypotheses: one text each.
        references: of each hypothesis, one text or several, of which the best counts.
        kind: ``"rougeLsum"`` takes each line as a sentence.

    Returns:
        0 to 1.

    Raises:
        ImportError: rouge-score is not installed.
        ValueError: other than one entry of references for each hypothesis, nothing to score, or an unknown kind.

    Example:
        >>> round(rouge(["the cat sat on the mat"], ["the cat is on the mat"], kind="rouge2"), 2)
        0.6

    References:
        Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError(f"ROUGE needs rouge-score, {INSTALL}.") from error
    if kind not in get_args(Rouge):
        raise ValueError(f"Expected kind to be one of {', '.join(get_args(Rouge))}, found {kind!r}.")
    scorer = RougeScorer([kind], use_stemmer=False)
    texts = _paired(hypotheses, references)
    scores = [scorer.score_multi(given, text)[kind].fmeasure for text, given in zip(hypotheses, texts, strict=True)]
    return float(sum(scores) / len(scores))


def _paired(hypotheses: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str]]:
    """The references of each hypothesis."""
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise ValueError("Expected lists of texts, found a single text. Put it in a list.")
    texts = [[given] if isinstance(given, str) else list(given) for given in references]
    if not texts or len(texts) != len(hypotheses) or not all(texts):
        raise ValueError(
            f"Expected at least one hypothesis and references for each, found {len(hypotheses)} hypotheses and references "
            f"for {sum(map(bool, texts))}."
        )
    return texts
