"""The arithmetic under which derivatives are exact: math attention, no fast paths, no autocast, full precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def exact_arithmetic(model: nn.Module) -> Iterator[None]:
    """Run forward and backward of ``model`` through kernels that have exact second derivatives.

    Fused attention kernels have no double backward on any device, the transformer encoder's fast path no derivative at
    all, cuDNN's recurrent kernels no double backward, and autocast leaves a floor of 5e-3 under every product.

    Args:
        model: decides whether cuDNN has to be switched off (recurrent layers) and compiled code bypassed.
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
        if any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
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


def _has(model: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in model.modules())
