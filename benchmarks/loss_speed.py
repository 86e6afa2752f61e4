"""Value and gradient of our losses beside those of torch, pytorch_optimizer and torchmetrics, and closed-form curvature.

Processor time of one thread, measured in turn; the ratio is that of the least times, which a busy machine disturbs least.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from theodolite import losses
from theodolite.operators import GGN
from theodolite.problem import Problem

Timed = Callable[[], object]
Pair = tuple[Timed, Timed]


def value_and_gradient(function: Callable[..., Tensor], *inputs: Tensor, **options: object) -> Timed:
    leaf = inputs[0].clone().requires_grad_()

    def run() -> Tensor:
        return torch.autograd.grad(function(leaf, *inputs[1:], **options), leaf)[0]

    return run


def ratio(ours: Timed, theirs: Timed, rounds: int = 30) -> tuple[float, float, float]:
    """Least milliseconds of both, and their ratio."""
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for run, times in zip((ours, theirs), spent, strict=True):
            start = time.process_time()
            run()
            times.append(time.process_time() - start)
    a, b = (1e3 * min(times[2:]) for times in spent)
    return a, b, a / b


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2048, 1000, generator=generator)
    teacher = torch.randn(2048, 1000, generator=generator)
    return {
        "z": z,
        "teacher": teacher,
        "y": torch.randint(1000, (2048,), generator=generator),
        "bits": (torch.rand(2048, 1000, generator=generator) > 0.5).float(),
        "flat": z.flatten(),
        "other": teacher.flatten(),
        "u": z[:, :64].contiguous(),
        "v": teacher[:, :64].contiguous(),
    }


def beside_torch(x: dict[str, Tensor]) -> dict[str, Pair]:
    """Pairs that compute the same value (test_same_value holds them to it)."""
    z, y, bits, flat, other = x["z"], x["y"], x["bits"], x["flat"], x["other"]
    grad = value_and_gradient
    ce, bce = grad(F.cross_entropy, z, y), grad(F.binary_cross_entropy_with_logits, z, bits)
    return {
        "poly(coefficients=()) / cross_entropy": (grad(losses.poly, z, y, coefficients=()), ce),
        "comp_sum(tau=1) / cross_entropy": (grad(losses.comp_sum, z, y, tau=1.0), ce),
        "sparse_softmax_ce(k=C) / cross_entropy": (grad(losses.sparse_softmax_ce, z, y, k=1000), ce),
        "ldr_kl / cross_entropy − log C": (grad(losses.ldr_kl, z, y), ce),
        "density_normalised_edge / cross_entropy": (grad(losses.density_normalised_edge, z, y, background=-1), ce),
        "macro_auc_univariate / bce": (grad(losses.macro_auc_univariate, z, bits, reweighted=False), bce),
        "sigmoid_focal(gamma=0) / bce": (grad(losses.sigmoid_focal, z, bits, gamma=0.0, alpha=None), bce),
        "quantile / ½ l1_loss": (grad(losses.quantile, flat, other), grad(F.l1_loss, flat, other)),
        "root_mean_square / √mse_loss": (
            grad(losses.root_mean_square, flat, other),
            grad(lambda a, b: F.mse_loss(a, b).sqrt(), flat, other),
        ),
        "squared_log_error / mse_loss of log1p": (
            grad(losses.squared_log_error, flat.abs(), other.abs()),
            grad(lambda a, b: F.mse_loss(a.log1p(), b.log1p()), flat.abs(), other.abs()),
        ),
        "kd(T=1) / kl_div": (grad(losses.kd, z, x["teacher"], temperature=1.0), grad(_kl, z, x["teacher"], 1.0)),
        "kd(T=4) / kl_div": (grad(losses.kd, z, x["teacher"]), grad(_kl, z, x["teacher"], 4.0)),
        "info_nce / cross_entropy of cosines": (
            grad(losses.info_nce, x["u"], x["v"], symmetric=False),
            grad(_plain_info_nce, x["u"], x["v"]),
        ),
        "info_nce(symmetric) / two cross_entropies": (
            grad(losses.info_nce, x["u"], x["v"]),
            grad(lambda u, v: (_plain_info_nce(u, v) + _plain_info_nce(v, u)) / 2, x["u"], x["v"]),
        ),
    }


def _kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_s, log_t = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return temperature**2 * F.kl_div(log_s, log_t, log_target=True, reduction="batchmean")


def _plain_info_nce(u: Tensor, v: Tensor) -> Tensor:
    return F.cross_entropy(F.normalize(u, dim=1) @ F.normalize(v, dim=1).T / 0.1, torch.arange(len(u)))


def beside_peers(x: dict[str, Tensor]) -> dict[str, Pair]:
    """The same losses in pytorch_optimizer and torchmetrics, where they are installed."""
    found: dict[str, Pair] = {}
    grad = value_and_gradient
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(4, 3, 192, 192, generator=generator) for _ in range(2)]
    p, masks = (
        torch.rand(8, 4, 64, 64, generator=generator),
        (torch.rand(8, 4, 64, 64, generator=generator) > 0.5).float(),
    )
    if importlib.util.find_spec("pytorch_optimizer"):
        from pytorch_optimizer import BCEFocalLoss, DiceLoss, FocalTverskyLoss, JaccardLoss, LDAMLoss

        counts = torch.arange(1000, 0, -1)
        theirs = LDAMLoss(counts.tolist(), max_m=0.5, weight=None, s=30.0)
        found |= {
            "ldam / pytorch_optimizer": (
                grad(losses.ldam, x["z"], x["y"], counts=counts),
                grad(lambda z, y: theirs(z, y), x["z"], x["y"]),
            ),
            "sigmoid_focal / pytorch_optimizer": (
                grad(losses.sigmoid_focal, x["z"], x["bits"]),
                grad(BCEFocalLoss(), torch.sigmoid(x["z"]), x["bits"]),
            ),
            "dice / pytorch_optimizer": (
                grad(losses.dice, p, masks, over="batch"),
                grad(DiceLoss("multilabel", from_logits=False), p, masks),
            ),
            "jaccard_metric / pytorch_optimizer": (
                grad(losses.jaccard_metric, p, masks),
                grad(JaccardLoss("multilabel", from_logits=False), p, masks),
            ),
            "tversky(gamma) / pytorch_optimizer": (
                grad(losses.tversky, p, masks, alpha=0.5, beta=0.5, gamma=1.0, over="batch"),
                grad(FocalTverskyLoss(alpha=0.5, beta=0.5, gamma=1.0), p, masks),
            ),
        }
    if importlib.util.find_spec("torchmetrics"):
        from torchmetrics.functional import image as tmi
        from torchmetrics.functional import regression as tmr
        from torchmetrics.functional.classification import binary_auroc, binary_average_precision

        flat, other, few = x["flat"], x["other"], 20_000
        hits = x["bits"].flatten()[:few] > 0
        found |= {
            "ms_ssim / torchmetrics": (
                grad(losses.ms_ssim, *images),
                grad(
                    lambda a, b: 1 - tmi.multiscale_structural_similarity_index_measure(a, b, data_range=1.0), *images
                ),
            ),
            "total_variation / torchmetrics": (
                grad(losses.total_variation, images[0]),
                grad(lambda a: tmi.total_variation(a, reduction="mean"), images[0]),
            ),
            "log_cosh / torchmetrics": (grad(losses.log_cosh, flat, other), grad(tmr.log_cosh_error, flat, other)),
            "roc_auc / torchmetrics": (
                lambda: losses.roc_auc(flat[:few], hits),
                lambda: binary_auroc(flat[:few], hits.long()),
            ),
            "average_precision / torchmetrics": (
                lambda: losses.average_precision(flat[:few], hits),
                lambda: binary_average_precision(flat[:few], hits.long()),
            ),
            "spearman / torchmetrics": (
                lambda: losses.spearman(flat[:few], other[:few]),
                lambda: tmr.spearman_corrcoef(flat[:few], other[:few]),
            ),
        }
    return found


def curvature(x: dict[str, Tensor]) -> dict[str, Pair]:
    """A product with the Hessian in the logits, by closed form beside double backward; the graph of both is built once."""
    v = torch.randn(x["z"].shape, generator=torch.Generator().manual_seed(2))
    found = {}
    for entry in losses.LOSSES.values():
        if entry.hessian is None or entry.name in ("ldam", "vs_loss"):
            continue
        closed = entry.hessian(x["z"], x["y"])
        leaf = x["z"].clone().requires_grad_()
        value = entry.function(leaf, x["y"], reduction="sum")
        (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
        found[entry.name] = (
            lambda closed=closed: closed @ v,
            lambda gradient=gradient, leaf=leaf: torch.autograd.grad(gradient, leaf, v, retain_graph=True)[0],
        )
    return found


class _Differentiated(nn.Module):
    """A loss module whose closed forms are hidden."""

    def __init__(self, loss: losses.LossModule) -> None:
        super().__init__()
        self.loss, self.reduction, self.couples_samples, self.arity = loss, loss.reduction, False, 2

    def forward(self, *given: Tensor, **options: object) -> Tensor:
        return self.loss(*given, **options)

    def divisor(self, *given: Tensor) -> float:
        return self.loss.divisor(*given)

    def output_hessian(self, *_: Tensor) -> None:
        raise NotImplementedError


def ggn_products() -> dict[str, Pair]:
    """Eight products of a GGN on kept graphs, of a network with a wide head, with and without closed forms."""
    found = {}
    for name in ("focal", "gce", "squentropy", "ldr_kl"):
        module = losses.LOSSES[name].function.as_module()  # type: ignore[attr-defined]
        pair = [_products(criterion) for criterion in (module, _Differentiated(module))]
        found[f"GGN with {name}"] = (pair[0], pair[1])
    return found


def _products(criterion: nn.Module) -> Timed:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2000))
    batch = torch.randn(512, 64), torch.randint(2000, (512,))
    problem = Problem(model, criterion, [batch], engine="retained")
    operator, V = GGN(problem), torch.randn(problem.n, 8)
    operator @ V  # builds the graphs
    return lambda: operator @ V


def print_all() -> None:
    x = inputs()
    sections = {
        "value + gradient beside torch's function of the same value, (2048, 1000), one thread": beside_torch(x),
        "beside other libraries": beside_peers(x),
        "output-Hessian product by closed form beside double backward": curvature(x),
        "eight GGN products with closed forms beside double backward": ggn_products(),
    }
    for title, pairs in sections.items():
        print(f"{title}: ms, ms, ratio")
        for name, pair in pairs.items():
            print("{:46s} {:8.2f} {:8.2f} {:6.2f}".format(name, *ratio(*pair)), flush=True)
