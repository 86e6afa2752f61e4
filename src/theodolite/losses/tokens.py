"""Losses on the tokens of language models: numbers, memorisation, risk, forgetting."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from theodolite.losses.contract import Reduction, mean_over, smoothed_cross_entropy, widened
from theodolite.losses.numerics import NEGLIGIBLE, log1mexp
from theodolite.losses.registry import loss, module_of


@loss("other", power="(0, ∞)")
def number_token(
    logits: Float[Tensor, "*b v"],
    labels: Int[Tensor, "*b"],
    *,
    values: Float[Tensor, " v"],
    kind: Literal["wasserstein", "moment"] = "wasserstein",
    power: float = 2.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Distance in value between the predicted number token and the right one; added to cross-entropy (times 0.3).

    The softmax runs over number tokens only. ``"wasserstein"``: Σ_j p_j |v_j − y|, the Wasserstein-1 distance to the
    label. ``"moment"``: |Σ_j p_j v_j − y|^power, which is 0 for mass split evenly around the label.

    Args:
        logits: tokens along the last axis.
        labels: token ids; positions whose label is not a number (or is negative) count nothing.
        values: number of each token, NaN where it is none.
        kind: which distance.
        power: of the moment form.
        reduction: over numeric positions; ``"none"`` is shaped as the labels, with 0 elsewhere.

    Returns:
        The reduced loss, 0 without a numeric position.

    Example:
        >>> number_token(torch.zeros(1, 3), torch.tensor([1]), values=torch.tensor([4.0, 5.0, 6.0]))
        tensor(0.6667)

    References:
        Zausinger et al. 2025, "Regress, Don't Guess: A Regression-like Loss on Number Tokens for Language Models".
    """
    rows, flat = widened(logits).reshape(-1, logits.shape[-1]), labels.reshape(-1)
    numeric = ~values.isnan()
    known = torch.where(numeric, values, 0.0).to(rows.dtype)
    p = torch.softmax(rows.masked_fill(~numeric, NEGLIGIBLE), 1)
    counted = _numeric(flat, values)
    right = known[flat.clamp(min=0)]
    spread = (p * (known - right[:, None]).abs()).sum(1)
    gap = (p * known).sum(1) - right
    moment = gap.square() if power == 2 else gap.abs() ** power  # |gap|² has no second derivative at 0
    distance = spread if kind == "wasserstein" else moment
    return _over_counted(distance, counted, labels.shape, reduction)


def number_token_count(
    logits: Float[Tensor, "*b v"], labels: Int[Tensor, "*b"], *, values: Float[Tensor, " v"]
) -> Int[Tensor, ""]:
    """Return the number of numeric positions."""
    return _numeric(labels, values).sum()


def _numeric(labels: Tensor, values: Tensor) -> Tensor:
    return (labels >= 0) & ~values.isnan()[labels.clamp(min=0)]


def _over_counted(single: Tensor, counted: Tensor, shape: torch.Size, reduction: Reduction) -> Tensor:
    """Reduce over the positions that count."""
    kept = torch.where(counted, single, 0.0)
    if reduction == "none":
        return kept.reshape(shape)
    return kept.sum() if reduction == "sum" else mean_over(kept.sum(), counted.sum().to(kept.dtype))


NumberTokenLoss = module_of(number_token, "NumberTokenLoss")


def wasserstein_1d(
    p: Float[Tensor, "*b v"], q: Float[Tensor, "*b v"], values: Float[Tensor, " v"]
) -> Float[Tensor, "*b"]:
    """Return the Wasserstein-1 distance of two distributions on the same numbers: Σ |CDF_p − CDF_q|_k (v_{k+1} − v_k)."""
    order = values.argsort()
    gap = (p - q)[..., order].cumsum(-1)[..., :-1].abs()
    return (gap * values[order].diff()).sum(-1)


@loss("other", k="[1, ∞]", context="[1, ∞)")
def goldfish(
    logits: Float[Tensor, "b t v"],
    labels: Int[Tensor, "b t"],
    *,
    k: float = 4.0,
    strategy: Literal["hash", "static", "random"] = "hash",
    context: int = 13,
    seed: int = 0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Cross-entropy without every k-th token, chosen so that a repeated passage always misses the same tokens.

    Args:
        logits: scores of the next token at each position.
        labels: the next tokens (already shifted).
        k: one in k tokens is dropped; infinity is cross-entropy.
        strategy: see :func:`goldfish_mask`.
        context: see :func:`goldfish_mask`.
        seed: see :func:`goldfish_mask`.
        ignore_index: label that counts nothing.
        reduction: over the kept tokens; ``"none"`` is shaped as the labels, with 0 for dropped ones.

    Returns:
        The reduced loss.

    Example:
        >>> goldfish(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))
        tensor(1.3863)

    References:
        Hans et al. 2024, "Be like a Goldfish, Don't Memorize! Mitigating Memorization in Generative LLMs".
    """
    kept = goldfish_mask(labels, k=k, strategy=strategy, context=context, seed=seed)
    return smoothed_cross_entropy(
        logits.transpose(1, 2),
        torch.where(kept, labels, ignore_index),
        weight=None,
        ignore_index=ignore_index,
        label_smoothing=0.0,
        reduction=reduction,
    )


def goldfish_count(
    logits: Float[Tensor, "b t v"],
    labels: Int[Tensor, "b t"],
    *,
    k: float = 4.0,
    strategy: Literal["hash", "static", "random"] = "hash",
    context: int = 13,
    seed: int = 0,
    ignore_index: int = -100,
) -> Int[Tensor, ""]:
    """Return the number of kept tokens."""
    kept = goldfish_mask(labels, k=k, strategy=strategy, context=context, seed=seed)
    return (kept & (labels != ignore_index)).sum()


GoldfishLoss = module_of(goldfish, "GoldfishLoss")


def goldfish_mask(
    tokens: Int[Tensor, "b t"],
    *,
    k: float = 4.0,
    strategy: Literal["hash", "static", "random"] = "hash",
    context: int = 13,
    inclusive: bool = False,
    seed: int = 0,
) -> Bool[Tensor, "b t"]:
    """Return which tokens enter the loss.

    ``"hash"`` drops a token iff the hash of the tokens before it, in order, falls below 1/k: wherever the passage
    occurs again, the same tokens are dropped. The released code multiplies the token ids, so that their order does not
    matter and one token of id 0 fixes the hash, and its window includes the token itself; ours is a polynomial in
    64-bit arithmetic.

    Args:
        tokens: token ids.
        k: one in k is dropped.
        strategy: ``"hash"``, ``"static"`` (positions ≡ seed mod k) or ``"random"``.
        context: tokens that are hashed; positions without that many before them are kept.
        inclusive: let the window end at the token itself, as released.
        seed: of the random strategy, phase of the static one, salt of the hash.

    Returns:
        True where the token is kept.

    Example:
        >>> goldfish_mask(torch.zeros(1, 4, dtype=torch.long), k=2.0, strategy="static")
        tensor([[False,  True, False,  True]])

    References:
        Hans et al. 2024, "Be like a Goldfish, Don't Memorize! Mitigating Memorization in Generative LLMs".
    """
    kept = torch.ones_like(tokens, dtype=torch.bool)
    if math.isinf(k):
        return kept
    if strategy == "static":
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return kept & ((positions - seed) % int(k) != 0)
    if strategy == "random":
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(tokens.shape, generator=generator) >= 1 / k).to(tokens.device)
    start = context - 1 if inclusive else context
    if tokens.shape[1] <= start:
        return kept
    windows = tokens.long().unfold(1, context, 1)[:, : tokens.shape[1] - start]
    kept[:, start:] = _hash01(windows, seed) >= 1 / k
    return kept


def _hash01(windows: Int[Tensor, "b n h"], seed: int) -> Float[Tensor, "b n"]:
    """Hash each window to [0, 1): a polynomial modulo 2^64, then the finaliser of SplitMix64."""
    powers = [1]
    for _ in range(windows.shape[2] - 1):
        powers.append((powers[-1] * 6364136223846793005) % 2**64)
    signed = torch.tensor([_signed(p) for p in powers], device=windows.device)
    x = ((windows + 1) * signed).sum(2) + _signed((seed * 0x9E3779B97F4A7C15) % 2**64)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    mixed = _shift(x ^ _shift(x, 31), 11)
    return mixed.double() / 2**53


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of 64-bit integers, which torch has only as an arithmetic one."""
    kept: Tensor = (x >> bits) & (2 ** (64 - bits) - 1)
    return kept


@loss("other")
def flat(
    template: Float[Tensor, "..."],
    forget: Float[Tensor, "..."],
    *,
    divergence: Literal["tv", "kl", "js", "pearson", "reverse-kl", "hellinger", "neyman"] = "kl",
) -> Float[Tensor, ""]:
    """Unlearning without retained data: −g*(P_e) + f*(g*(P_f)) raises the template answer, lowers the one to forget.

    The variational form of an f-divergence between the two kinds of answers.

    Args:
        template: mean probability of the tokens of the template answers, P_e.
        forget: mean probability of the tokens of the answers to forget, P_f.
        divergence: which f.

    Returns:
        Mean over answers.

    Example:
        >>> flat(torch.tensor(0.5), torch.tensor(0.5), divergence="pearson")
        tensor(0.0625)

    References:
        Wang et al. 2024, "LLM Unlearning via Loss Adjustment with Only Forget Data".
    """
    return (-flat_activation(widened(template), divergence)).mean() + flat_conjugate(
        flat_activation(widened(forget), divergence), divergence
    ).mean()


def flat_activation(v: Tensor, divergence: str) -> Tensor:
    """Return g*(v), a map into the domain of f*."""
    if divergence == "tv":
        return 0.5 * torch.tanh(v)
    if divergence == "js":
        return math.log(2.0) - F.softplus(-v)
    if divergence == "reverse-kl":
        return -torch.exp(-v)
    if divergence in ("hellinger", "neyman"):
        return -torch.expm1(-v)
    return v


def flat_conjugate(u: Tensor, divergence: str) -> Tensor:
    """Return f*(u) = sup_t ut − f(t)."""
    if divergence == "tv":
        return u
    if divergence == "kl":
        return torch.exp(u - 1)
    if divergence == "js":
        return -torch.log(2 - torch.exp(u))
    if divergence == "pearson":
        return u + u**2 / 4
    if divergence == "reverse-kl":
        return -1 - torch.log(-u)
    return u / (1 - u) if divergence == "hellinger" else 2 - 2 * torch.sqrt(1 - u)


FLATLoss = module_of(flat, "FLATLoss")


@loss("other")
def slung(
    logits: Float[Tensor, "*b v"],
    labels: Int[Tensor, "*b"],
    risky: Bool[Tensor, "*b"],
    *,
    mode: Literal["mask", "unlikelihood"] = "mask",
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Understand but do not generate: likelihood of safe tokens, nothing or unlikelihood for risky ones.

    Risky tokens stay in the context of those after them; only their own loss changes, to 0 or −log(1 − p_y).

    Args:
        logits: scores of the next token.
        labels: the next tokens.
        risky: which labels must not be learnt.
        mode: what a risky token costs.
        ignore_index: label that counts nothing.
        reduction: over tokens that cost something by kind: all of them, or the safe ones for ``"mask"``.

    Returns:
        The reduced loss.

    Example:
        >>> slung(torch.zeros(2, 4), torch.tensor([0, 1]), torch.tensor([False, True]))
        tensor(1.3863)

    References:
        Wang et al. 2025, "Teaching Models to Understand (but not Generate) High-risk Data".
    """
    rows, flat_labels, flat_risky = widened(logits).reshape(-1, logits.shape[-1]), labels.reshape(-1), risky.reshape(-1)
    valid = flat_labels != ignore_index
    u = F.cross_entropy(rows, torch.where(valid, flat_labels, 0), reduction="none")
    # at p = 1 the unlikelihood is infinite; a cross-entropy of at least 1e-6 caps it at 13.8
    unlikely = -log1mexp(u.clamp(min=1e-6))
    values = torch.where(flat_risky, unlikely, u)
    return _over_counted(values, valid & ((mode == "unlikelihood") | ~flat_risky), labels.shape, reduction)


def slung_count(
    logits: Float[Tensor, "*b v"],
    labels: Int[Tensor, "*b"],
    risky: Bool[Tensor, "*b"],
    *,
    mode: Literal["mask", "unlikelihood"] = "mask",
    ignore_index: int = -100,
) -> Int[Tensor, ""]:
    """Return the number of tokens that cost something by kind."""
    return ((labels != ignore_index) & ((mode == "unlikelihood") | ~risky)).sum()


SLUNGLoss = module_of(slung, "SLUNGLoss")
