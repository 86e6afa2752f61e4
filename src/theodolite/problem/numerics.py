"""The arithmetic under which derivatives are exact: math attention, no fast paths, no autocast, full precision."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint as torch_checkpoint


@contextmanager
def exact_arithmetic(model: nn.Module) -> Iterator[None]:
    """Run forward and backward of ``model`` through kernels that have exact second derivatives.

    Fused attention kernels have no double backward on any device, the transformer encoder's fast path no derivative at
    all, cuDNN's recurrent kernels no double backward, and autocast leaves a floor of 5e-3 under every product.

    Reentrant activation checkpoints, which have no gradients at replaced parameters, recompute like the others.

    The fused weight norm's second derivative takes the norms for constants: a Hessian through it is 57 % off.

    Args:
        model: decides whether cuDNN has to be switched off (recurrent layers) and weight norm spelt out.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_without_encoder_fast_path())
        for device in {"cpu", *(parameter.device.type for parameter in model.parameters())} - {"meta"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        if torch.cuda.is_available():
            stack.enter_context(_full_precision_cuda(recurrent=_has(model, nn.RNNBase)))
        if "torch._dynamo" in sys.modules:  # nothing can have been compiled without it, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_checkpoints_without_reentry())
        if any(_has_weight_norm(module) for module in model.modules()):
            stack.enter_context(_PlainWeightNorm())
        yield


@contextmanager
def _without_encoder_fast_path() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _checkpoints_without_reentry() -> Iterator[None]:
    """Let ``checkpoint(…, use_reentrant=True)`` recompute as with False: the older way works with ``.backward()`` alone.

    It has no gradient with respect to given tensors, so that neither a product nor a gradient at replaced parameters exists.
    """
    owner: Any = torch_checkpoint
    before = owner.CheckpointFunction
    owner.CheckpointFunction = _WithoutReentry
    try:
        yield
    finally:
        owner.CheckpointFunction = before


class _WithoutReentry:
    """Stands in for the autograd function of reentrant checkpoints."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return torch_checkpoint.checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)


@contextmanager
def _full_precision_cuda(*, recurrent: bool) -> Iterator[None]:
    """Switch TF32 and cuDNN's search off; cuDNN altogether for recurrent layers, whose kernels lack double backward."""
    cudnn: Any = torch.backends.cudnn
    settings: list[tuple[Any, str, object]] = [
        (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
        (cudnn.conv, "fp32_precision", "ieee"),
        (cudnn.rnn, "fp32_precision", "ieee"),
        (cudnn, "enabled", cudnn.enabled and not recurrent),
        (cudnn, "benchmark", False),
        (cudnn, "deterministic", True),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in settings]
    for owner, name, value in settings:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


class _PlainWeightNorm(TorchFunctionMode):
    """Computes weight norm as g·v/‖v‖ from differentiable operations."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch._weight_norm:
            return _weight_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _has_weight_norm(module: nn.Module) -> bool:
    """Whether it is the parametrisation, or carries the older hook."""
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, parametrizations._WeightNorm) or any(isinstance(hook, WeightNorm) for hook in hooks)


def _has(model: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in model.modules())
