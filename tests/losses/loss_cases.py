"""Inputs for every registered loss: what the shared harness feeds it, and how."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from theodolite import losses
from theodolite.losses.registry import LOSSES, Entry

SAMPLES, CLASSES = 5, 4
Builder = Callable[[torch.Generator], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """One loss, its inputs (floating ones are differentiated unless fixed) and its options."""

    entry: Entry
    build: Builder
    options: dict[str, Any] = field(default_factory=dict)
    fixed: tuple[int, ...] = ()  # floating inputs that are data: not differentiated
    whole: bool = False  # the loss of a set: no per-sample reduction

    @property
    def id(self) -> str:
        shown = {k: getattr(v, "__name__", v) for k, v in self.options.items() if not isinstance(v, Tensor)}
        return self.entry.name + "".join(f"-{k}={v}" for k, v in shown.items())

    def inputs(self, seed: int = 0) -> tuple[Tensor, ...]:
        return self.build(torch.Generator().manual_seed(seed))

    def free(self, inputs: tuple[Tensor, ...]) -> list[int]:
        return [i for i, x in enumerate(inputs) if x.is_floating_point() and i not in self.fixed]

    def __call__(self, *inputs: Tensor, **extra: Any) -> Tensor:
        return self.entry.function(*inputs, **(self.options | extra))


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def classes(generator: torch.Generator) -> tuple[Tensor, ...]:
    return normal(generator, SAMPLES, CLASSES), torch.randint(CLASSES, (SAMPLES,), generator=generator)


def labels(generator: torch.Generator) -> tuple[Tensor, ...]:
    return normal(generator, SAMPLES, 3), torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]]).double()


def values(generator: torch.Generator) -> tuple[Tensor, ...]:
    return normal(generator, 6), normal(generator, 6)


def masks(generator: torch.Generator) -> tuple[Tensor, ...]:
    return uniform(generator, 2, 3, 4, 4), uniform(generator, 2, 3, 4, 4).round()


def pairs(generator: torch.Generator) -> tuple[Tensor, ...]:
    return tuple(-3 * uniform(generator, 5) - 0.2 for _ in range(4))


def with_lengths(generator: torch.Generator) -> tuple[Tensor, ...]:
    chosen, rejected, _, _ = pairs(generator)
    return chosen, rejected, torch.tensor([2, 3, 1, 4, 2]), torch.tensor([1, 2, 5, 2, 2])


def views(generator: torch.Generator) -> tuple[Tensor, ...]:
    return normal(generator, 5, 3), normal(generator, 5, 3)


def embeddings(generator: torch.Generator) -> tuple[Tensor, ...]:
    return normal(generator, 7, 3), torch.tensor([0, 1, 0, 2, 1, 0, 2])


BY_KIND: dict[str, Builder] = {
    "classes": classes,
    "labels": labels,
    "values": values,
    "masks": masks,
    "pairs": pairs,
    "views": views,
    "embeddings": embeddings,
}
COUNTS = torch.tensor([40.0, 20.0, 10.0, 5.0], dtype=torch.float64)
VALUES = torch.tensor([1.0, math.nan, 3.0, 7.0], dtype=torch.float64)
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "comp_sum": [{"tau": t} for t in (0.0, 0.5, 1.0, 1.5, 2.0)],
    "poly": [{}, {"coefficients": (0.5, -0.2, 1.0)}],
    "focal": [{}, {"gamma": 0.5}],
    "dco": [{"samples": 1}, {"samples": 16}],
    "js": [{"label_share": 0.1}, {"label_share": 0.9}],
    "ldr_kl": [{}, {"lam": 0.3, "margin": 1.0}],
    "taylor_softmax_ce": [{}, {"order": 4}],
    "sparse_softmax_ce": [{"k": 2}, {"k": 4}],
    "hinge": [{}, {"power": 2.0}],
    "angular_margin": [{"scale": 4.0, "kind": "cosine"}, {"scale": 4.0}],
    "circle_classes": [{"gamma": 2.0, "detach_weight": False}],
    "ldam": [{"counts": COUNTS, "scale": 3.0}],
    "vs_loss": [{"counts": COUNTS}],
    "integrated_risk": [{"counts": COUNTS, "utility": losses.tail_sensitive_utility(COUNTS), "utility_weight": 2.0}],
    "sigmoid_focal": [{}, {"gamma": 0.5, "alpha": None}],
    "asymmetric": [{"detach_weight": False}, {"detach_weight": False, "gamma_pos": 0.0, "gamma_neg": 2.0, "clip": 0.0}],
    "asymmetric_single_label": [{"detach_weight": False}, {"detach_weight": False, "gamma_pos": 1.0}],
    "macro_auc_univariate": [{}, {"reweighted": False}],
    "any_loss": [
        {"sharpness": 5.0, "metric": metric}
        for metric in (losses.f_score, losses.g_mean, losses.matthews, losses.cohen_kappa, losses.balanced_accuracy)
    ],
    "h_calibration": [{"window": 3, "bins": 2}],
    "info_nce": [{"temperature": 0.5}, {"temperature": 0.5, "tile": 2, "symmetric": False}],
    "nt_xent": [{}, {"tile": 3}],
    "siglip": [{"log_scale": 1.0, "bias": -1.0}, {"log_scale": 1.0, "bias": -1.0, "tile": 2}],
    "clip": [{}],
    "supcon": [{"temperature": 0.5}, {"temperature": 0.5, "variant": "in"}],
    "alignment": [{}, {"alpha": 1.5}],
    "dispersive": [{"kind": kind, "margin": 9.0} for kind in ("l2", "cosine", "hinge", "covariance")],
    "icon": [{"debias": 0.2}],
    "triplet": [{"mining": mining, "margin": m} for mining in ("hard", "semi", "all") for m in (5.0, None)],
    "circle": [{"gamma": 2.0, "detach_weight": False}],
    "multi_similarity": [{"beta": 3.0, "epsilon": 0.5}],
    "ccl": [{"margin": -0.3}],
    "proto_triplet": [{"margin": 5.0}],
    "pair_contrastive": [{"margin": 5.0}],
    "orthohash": [{}, {"kind": "angle"}],
    "homogeneity": [{"kind": kind} for kind in ("integral", "released")],
    "surrogate_pull": [{}, {"weighted": False}],
    "unified_negatives": [{"scale": 4.0, "margin": 0.1}],
    "rspo": [{"eta": 2.0}],
    "hutchinson_align": [{"probes": 4, "alpha": 1.0, "beta": 1.0}],
    "mean_field_contrastive": [{"lam": 0.1, "negative_margin": 1.2}],
    "mean_field_multi_similarity": [{"lam": 0.1, "beta": 3.0}],
    "submodular": [
        {"function": function, "correlation": correlation}
        for function in ("facility", "graph-cut", "logdet")
        for correlation in (False, True)
    ],
    "dice": [{}, {"over": "batch", "square": True}],
    "tversky": [{"alpha": 0.7, "beta": 0.3, "gamma": 0.75}],
    "self_adjusting_dice": [{"alpha": 0.0}, {"alpha": 1.0}],
    "jaccard_metric": [{"kind": "sizes", "alpha": 0.5}, {"kind": "overlap", "over": "sample"}],
    "projected_tversky": [{"axes": (2, 3)}],
    "box_overlap": [{"kind": kind} for kind in ("iou", "giou", "diou")],
    "neural_ndcg": [{"sinkhorn_steps": 3}, {"sinkhorn_steps": 3, "transposed": True, "k": 2}],
    "sinkhorn_divergence": [{"blur": 0.7, "steps": 10}, {"blur": 0.7, "p": 1.0, "steps": 5}],
    "soft_dtw": [{"gamma": 0.5}],
    "bures_wasserstein": [{"ridge": 0.1}],
    "bag_square": [{"rho": 0.3}],
    "easy_llp": [{"prior": 0.3}],
    "irm_v1": [{}, {"unbiased": True}],
    "number_token": [{"values": VALUES}, {"values": VALUES, "kind": "moment"}],
    "goldfish": [{"k": 2.0, "context": 2}],
    "flat": [{"divergence": d} for d in ("tv", "kl", "js", "pearson", "reverse-kl", "hellinger", "neyman")],
    "slung": [{}, {"mode": "unlikelihood"}],
    "dpo": [{}, {"label_smoothing": 0.2}],
    "sppo": [{"eta": 2.0}],
    "root_mean_square": [{"normalizer": n} for n in ("none", "range", "mean", "prediction")],
    "relative_error": [{"power": 1}, {"power": 2}],
    "regression_by_classes": [{"edges": torch.tensor([-0.5, 0.5], dtype=torch.float64)}],
}
FIXED: dict[str, tuple[int, ...]] = {"values": (1,), "labels": (1,), "masks": (1,)}
BUILDERS: dict[str, Builder] = {
    "harmonic": lambda g: (normal(g, 5, 3), normal(g, 4, 3), torch.tensor([0, 1, 2, 3, 0])),
    "dco_sequence": lambda g: (-2 * uniform(g, 5) - 0.1,),
    "density_normalised_edge": classes,
    "integrated_risk": lambda g: (normal(g, 2, 5, 4), classes(g)[1]),
    "any_loss": lambda g: (uniform(g, 5, 3), labels(g)[1]),
    "mann_whitney": lambda g: (normal(g, 3), normal(g, 4)),
    "h_calibration": lambda g: (torch.softmax(normal(g, 5, 4), 1), classes(g)[1]),
    "correctness_aware": lambda g: (uniform(g, 5), uniform(g, 5) > 0.5),
    "reject_surrogate": lambda g: (normal(g, 5), uniform(g, 5) > 0.5),
    "number_token": lambda g: (normal(g, 5, 4), torch.tensor([0, 1, 2, -100, 3])),
    "goldfish": lambda g: (normal(g, 2, 6, 4), torch.randint(4, (2, 6), generator=g)),
    "flat": lambda g: (uniform(g, 3), uniform(g, 3)),
    "slung": lambda g: (normal(g, 5, 4), torch.tensor([0, 1, 2, -100, 3]), torch.tensor([1, 0, 0, 1, 1]).bool()),
    "kl_penalty": values,
    "log_variance": lambda g: (normal(g, 6),),
    "simpo": with_lengths,
    "orpo": with_lengths,
    "cpo": with_lengths,
    "sppo": lambda g: (normal(g, 4), normal(g, 4), uniform(g, 4)),
    "squared_log_error": lambda g: (uniform(g, 6), uniform(g, 6)),
    "cisir": lambda g: (normal(g, 6), normal(g, 6), torch.softmax(normal(g, 6), 0)),
    "regression_by_classes": lambda g: (normal(g, 6), normal(g, 6, 3), normal(g, 6)),
    "kd": lambda g: (normal(g, 5, 4), normal(g, 5, 4)),
    "trajectory": lambda g: (normal(g, 5, 4), normal(g, 5, 4)),
    "norm_and_direction": lambda g: (normal(g, 5, 3), normal(g, 5, 3), normal(g, 5, 3)),
    "ridg": lambda g: (normal(g, 5, 3), normal(g, 4, 3), classes(g)[1], normal(g, 4, 4, 3)),
    "class_separation": lambda g: (normal(g, 4, 3),),
    "clip": lambda g: (normal(g, 5, 3), normal(g, 5, 3), torch.tensor(0.7, dtype=torch.float64)),
    "uniformity": lambda g: (normal(g, 5, 3),),
    "koleo": lambda g: (normal(g, 5, 3),),
    "dispersive": lambda g: (normal(g, 5, 3),),
    "intl": lambda g: (normal(g, 7, 2), normal(g, 7, 2)),
    "icon": lambda g: (torch.softmax(normal(g, 5, 4), 1), torch.log_softmax(normal(g, 5, 4), 1)),
    "isogclr": lambda g: (normal(g, 5, 4), normal(g, 5), uniform(g, 5) + 0.3),
    "ccl": lambda g: (normal(g, 4, 3), normal(g, 4, 3), normal(g, 4, 2, 3)),
    "proto_triplet": lambda g: (normal(g, 5, 3), normal(g, 4, 3), classes(g)[1]),
    "pair_contrastive": lambda g: (normal(g, 5, 3), normal(g, 5, 3), torch.tensor([1.0, 0, 1, 0, 0]).double()),
    "orthohash": lambda g: (normal(g, 5, 4), losses.hadamard_codes(4, 4).double(), classes(g)[1]),
    "mean_field_contrastive": lambda g: (normal(g, 5, 3), normal(g, 4, 3), classes(g)[1]),
    "mean_field_multi_similarity": lambda g: (normal(g, 5, 3), normal(g, 4, 3), torch.tensor([0, 1, 1, 3, 0])),
    "enveloping": lambda g: (normal(g, 4, 3), normal(g, 6, 3)),
    "homogeneity": lambda g: (normal(g, 4, 3), torch.tensor([0.0, 1.0, 3.0, 4.0], dtype=torch.float64)),
    "surrogate_pull": lambda g: (normal(g, 5, 3), classes(g)[1], normal(g, 4, 3)),
    "unified_negatives": lambda g: (normal(g, 5, 3), normal(g, 4, 3), classes(g)[1]),
    "mixup_contrastive": lambda g: (normal(g, 4, 3), normal(g, 4, 3), torch.tensor([1, 2, 3, 0]), uniform(g, 4)),
    "log_square": lambda g: (uniform(g, 6), uniform(g, 6)),
    "log_amplified": lambda g: (0.9 * uniform(g, 6),),
    "rspo": lambda g: (*(-uniform(g, 4) for _ in range(3)), uniform(g, 4)),
    "hutchinson_align": lambda g: (normal(g, 2, 4, 2), normal(g, 2, 4, 3), torch.randint(3, (2, 4), generator=g)),
    "group_ordering": lambda g: (normal(g, 2, 3), normal(g, 2, 2, 3), normal(g, 2, 3, 3)),
    "projected_tversky": masks,
    "box_overlap": lambda g: (
        torch.tensor([[0.0, 0, 1, 1.3], [0.2, 0.1, 0.9, 2]], dtype=torch.float64),
        torch.tensor([[0.5, 0.2, 1.5, 1], [2.0, 3, 4, 5]], dtype=torch.float64),
    ),
    "ms_ssim": lambda g: (uniform(g, 1, 1, 11, 12), uniform(g, 1, 1, 11, 12)),
    "total_variation": lambda g: (normal(g, 1, 2, 3, 4),),
    "topological_autoencoder": lambda g: (normal(g, 5, 3), normal(g, 5, 2)),
    "neural_ndcg": lambda g: (normal(g, 2, 4), torch.tensor([[2.0, 0, 1, 0], [0, 1, 1, 0]], dtype=torch.float64)),
    "rank_mixup_margin": lambda g: (normal(g, 4, 3), normal(g, 4, 3), torch.tensor([1, 0, 1, 1]).bool()),
    "rank_mixup_ndcg": lambda g: (uniform(g, 3, 2), uniform(g, 3, 2)),
    "sinkhorn_divergence": lambda g: (normal(g, 4, 2), normal(g, 3, 2)),
    "soft_dtw": lambda g: (normal(g, 2, 3, 2), normal(g, 2, 4, 2)),
    "bures_wasserstein": lambda g: tuple(m @ m.T for m in (normal(g, 3, 3), normal(g, 3, 3))),
    "bag_square": lambda g: (normal(g, 4, 3), normal(g, 4)),
    "easy_llp": lambda g: (normal(g, 4, 3), uniform(g, 4)),
    "denoising_score": lambda g: (normal(g, 4, 3), normal(g, 4, 3), uniform(g, 4) + 0.5),
    "target_score": lambda g: (normal(g, 4, 3), normal(g, 4, 3)),
    "denoising_likelihood_score": lambda g: (normal(g, 4, 3), normal(g, 4, 3), normal(g, 4, 3), uniform(g, 4) + 0.5),
    "relativistic_pairing": lambda g: (normal(g, 4), normal(g, 4)),
    "irm_v1": lambda g: (normal(g, 2, 4, 3), torch.randint(3, (2, 4), generator=g)),
    "irm_v2": lambda g: (normal(g, 2, 5, 2), normal(g, 2), normal(g, 2, 5)),
    "v_rex": lambda g: (normal(g, 3),),
    "fishr": lambda g: (normal(g, 2, 4, 2), normal(g, 2, 4, 3), torch.randint(3, (2, 4), generator=g)),
    "hessian_align": lambda g: (normal(g, 2, 4, 2), normal(g, 2, 4, 3), torch.randint(3, (2, 4), generator=g)),
    "hinge": lambda g: (normal(g, 6), torch.tensor([1.0, -1, 1, 1, -1, -1]).double()),
}


def cases(*kinds: str) -> list[Case]:
    found = []
    for name, entry in LOSSES.items():
        if kinds and entry.kind not in kinds:
            continue
        build = BUILDERS.get(name) or BY_KIND[entry.kind]
        for options in VARIANTS.get(name, [{}]):
            fixed = FIXED_BY_NAME.get(name, FIXED.get(entry.kind, ()))
            found.append(Case(entry, build, options, fixed, name in WHOLE))
    return found


FIXED_BY_NAME: dict[str, tuple[int, ...]] = {
    "sppo": (1, 2),
    "rspo": (1, 2, 3),
    "enveloping": (1,),
    "homogeneity": (1,),
    "surrogate_pull": (2,),
    "mixup_contrastive": (3,),
    "denoising_score": (1, 2),
    "denoising_likelihood_score": (1, 2, 3),
    "neural_ndcg": (1,),
    "orthohash": (1,),
    "pair_contrastive": (2,),
    "group_ordering": (1, 2),
    "cisir": (1, 2),
    "regression_by_classes": (2,),
    "kd": (1,),
    "trajectory": (1,),
    "norm_and_direction": (1, 2),
    "ridg": (3,),
}
WHOLE: set[str] = set()
