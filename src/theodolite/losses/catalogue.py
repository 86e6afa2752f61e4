"""The survey's losses and metrics in one table: formula, range, minimiser, gradient bound, and which function computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

Task = Literal[
    "regression", "classification", "embedding", "segmentation", "detection", "image", "language", "sequence"
]


@dataclass(frozen=True)
class Row:
    """One loss or metric of the catalogue.

    Args:
        name: as the survey calls it.
        formula: in plain characters; e is the error ŷ − y, z logits, p probabilities, f a score, y the target.
        task: what it is for.
        range: of its values.
        best: where it is least, for a metric its best value.
        gradient: bound of the gradient in the prediction; ∞ where there is none, – for a metric.
        differentiable: whether it has a useful gradient.
        function: name in ``theodolite.losses``.
    """

    name: str
    formula: str
    task: Task
    range: str
    best: str
    gradient: str
    differentiable: bool
    function: str


def catalogue() -> tuple[Row, ...]:
    """Return the survey's losses and metrics.

    Example:
        >>> [row.function for row in catalogue() if row.name == "Huber"]
        ['huber_loss']

    References:
        Terven et al. 2023, "Loss Functions and Metrics in Deep Learning".
    """
    return tuple(_row(line) for table in (LOSSES, METRICS) for line in table.strip().splitlines())


def _row(line: str) -> Row:
    name, formula, task, values, best, gradient, function = line.split(" ; ")
    return Row(name, formula, cast(Task, task), values, best, gradient, gradient != "–", function)


# name ; formula ; task ; range ; where it is least ; gradient bound ; function
LOSSES = """
mean absolute error ; |e| ; regression ; [0, ∞) ; median ; 1 ; l1_loss
mean squared error ; e² ; regression ; [0, ∞) ; mean ; ∞ ; mse_loss
root mean squared error ; √mean e² ; regression ; [0, ∞) ; mean ; 1 ; root_mean_square
relative absolute error ; Σ|e|/Σ|y − ȳ| ; regression ; [0, ∞) ; median ; n/Σ|y − ȳ| ; relative_error
relative squared error ; Σe²/Σ(y − ȳ)² ; regression ; [0, ∞) ; mean ; ∞ ; relative_error
mean absolute percentage error ; |e/y| ; regression ; [0, ∞) ; below the median ; 1/|y| ; percentage_error
mean squared log error ; log²((1 + ŷ)/(1 + y)) ; regression ; [0, ∞) ; geometric mean of 1 + y ; ∞ ; squared_log_error
Huber ; e²/2 if |e| ≤ δ else δ|e| − δ²/2 ; regression ; [0, ∞) ; between mean and median ; δ ; huber_loss
smooth L1 ; Huber(β)/β ; regression ; [0, ∞) ; between mean and median ; 1 ; smooth_l1_loss
log-cosh ; log cosh e ; regression ; [0, ∞) ; between mean and median ; 1 ; log_cosh
quantile ; max(qe', (q − 1)e'), e' = −e ; regression ; [0, ∞) ; q-quantile ; max(q, 1 − q) ; quantile
Charbonnier ; √(e² + ε²) ; regression ; [ε, ∞) ; near the median ; 1 ; charbonnier
Poisson ; e^z − yz ; regression ; (−∞, ∞) ; log of the mean ; ∞ ; poisson_nll_loss
Gaussian likelihood ; ½(log v + e²/v) ; regression ; (−∞, ∞) ; mean and variance ; ∞ ; gaussian_nll_loss
binary cross-entropy ; −log σ(±z) ; classification ; [0, ∞) ; log-odds ; 1 ; binary_cross_entropy_with_logits
cross-entropy ; −log p_y ; classification ; [0, ∞) ; posterior ; √2 ; cross_entropy
focal ; −(1 − p_y)^γ log p_y ; classification ; [0, ∞) ; flatter than the posterior ; finite ; focal
hinge ; [1 − yf]_+ ; classification ; [0, ∞) ; Bayes sign ; 1 ; hinge
squared hinge ; [1 − yf]_+² ; classification ; [0, ∞) ; 2η − 1 ; ∞ ; hinge
multi-class hinge ; [1 − z_y + max_{k≠y} z_k]_+ ; classification ; [0, ∞) ; Bayes class at half ; √2 ; crammer_singer
summed multi-class hinge ; mean_k [1 − z_y + z_k]_+ ; classification ; [0, ∞) ; Bayes class at half ; √2 ; multi_margin_loss
KL divergence ; Σ q log(q/p) ; classification ; [0, ∞) ; p = q ; √2 in logits ; kl_div
Dice ; 1 − 2Σpy/(Σp + Σy) ; segmentation ; [0, 1] ; label ; finite ; dice
Tversky ; 1 − TP/(TP + αFP + βFN) ; segmentation ; [0, 1] ; label ; finite ; tversky
Jaccard ; 1 − TP/(TP + FP + FN) ; segmentation ; [0, 1] ; label ; finite ; jaccard_metric
IoU ; 1 − I/U ; detection ; [0, 1] ; label ; 0 where boxes are apart ; box_overlap
GIoU ; 1 − I/U + (C − U)/C ; detection ; [0, 2] ; label ; finite ; box_overlap
DIoU ; 1 − I/U + ρ²/c² ; detection ; [0, 2] ; label ; finite ; box_overlap
CIoU ; DIoU + αv ; detection ; [0, 3] ; label ; finite ; box_overlap
total variation ; mean |∇x| ; image ; [0, ∞) ; constant image ; 4 a pixel ; total_variation
structural similarity ; 1 − Π l^w cs^w ; image ; [0, 1] ; label ; finite ; ms_ssim
pairwise contrastive ; y d² + (1 − y)[m − d]_+² ; embedding ; [0, ∞) ; 0 or ≥ m ; ∞ ; pair_contrastive
triplet ; [m + d_ap − d_an]_+ ; embedding ; [0, ∞) ; margin met ; 2 ; triplet
InfoNCE ; −log softmax of the pair's cosine ; embedding ; [0, ∞) ; aligned and uniform ; 1/τ in cosines ; info_nce
circle ; softplus(lse_n + lse_p) ; embedding ; [0, ∞) ; margin met ; γ(1 + m) in cosines ; circle
cosine embedding ; 1 − cos or [cos − m]_+ ; embedding ; [0, 2] ; aligned or apart ; 1 in the cosine ; cosine_embedding_loss
CTC ; −log Σ_alignments p ; sequence ; [0, ∞) ; label ; √2 a step ; ctc_loss
"""

METRICS = """
accuracy ; (TP + TN)/n ; classification ; [0, 1] ; 1 ; – ; accuracy_score
balanced accuracy ; mean of the rates of right answers ; classification ; [0, 1] ; 1 ; – ; balanced_accuracy
precision ; TP/(TP + FP) ; classification ; [0, 1] ; 1 ; – ; precision
recall ; TP/(TP + FN) ; classification ; [0, 1] ; 1 ; – ; recall
F score ; (1 + β²)PR/(β²P + R) ; classification ; [0, 1] ; 1 ; – ; f_score
Matthews correlation ; (TP·TN − FP·FN)/√((TP + FP)(TP + FN)(TN + FP)(TN + FN)) ; classification ; [−1, 1] ; 1 ; – ; matthews
Cohen's κ ; (p_o − p_e)/(1 − p_e) ; classification ; [−1, 1] ; 1 ; – ; cohen_kappa
ROC-AUC ; P(s₊ > s₋) + ½P(s₊ = s₋) ; classification ; [0, 1] ; 1 ; – ; roc_auc
average precision ; Σ (R_k − R_{k−1})P_k ; classification ; [0, 1] ; 1 ; – ; average_precision
log-loss ; −mean log p_y ; classification ; [0, ∞) ; 0 ; – ; log_score
Brier ; mean |p − e_y|² ; classification ; [0, 2] ; 0 ; – ; brier_score
expected calibration error ; Σ_b n_b/n |conf_b − acc_b| ; classification ; [0, 1] ; 0 ; – ; expected_calibration_error
R² ; 1 − Σe²/Σ(y − ȳ)² ; regression ; (−∞, 1] ; 1 ; – ; r_squared
adjusted R² ; 1 − (1 − R²)(n − 1)/(n − 1 − k) ; regression ; (−∞, 1] ; 1 ; – ; r_squared
mean bias error ; mean e ; regression ; (−∞, ∞) ; 0 ; – ; mean_bias
Pearson ; cov/(σσ') ; regression ; [−1, 1] ; 1 ; – ; pearson
Spearman ; Pearson of ranks ; regression ; [−1, 1] ; 1 ; – ; spearman
PSNR ; 10 log₁₀(L²/MSE) ; image ; (−∞, ∞] ; ∞ ; – ; psnr
perplexity ; e^{mean −log p} ; language ; [1, ∞) ; 1 ; – ; perplexity
BLEU ; 100 · brevity · (Π_{n≤4} precision_n)^¼ ; language ; [0, 100] ; 100 ; – ; bleu
ROUGE ; F of shared n-grams or of the longest common subsequence ; language ; [0, 1] ; 1 ; – ; rouge
"""
