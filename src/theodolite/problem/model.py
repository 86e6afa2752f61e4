"""The model as it is surveyed: without wrappers, on one device, with the statistics that its BatchNorm uses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from theodolite.errors import ProblemError


def unwrapped(model: nn.Module) -> nn.Module:
    """Take off torch.compile and data-parallel wrappers, which hide parameters and break double backward."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def device_of(model: nn.Module) -> torch.device:
    """The one device of a model.

    Raises:
        ProblemError: there are several, or the model has no values.
    """
    devices = {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
    if len(devices) > 1:
        raise ProblemError(
            f"Expected all parameters and buffers on one device, found {sorted(map(str, devices))}. "
            "Move the model with model.to(device)."
        )
    device = next(iter(devices), torch.device("cpu"))
    if device.type == "meta":
        raise ProblemError("Expected a model with values, found parameters on the meta device. Load its weights first.")
    return device


def common_dtype(parameters: Mapping[str, nn.Parameter]) -> torch.dtype:
    """The widest type among the parameters."""
    dtype = next(iter(parameters.values())).dtype
    for parameter in parameters.values():
        dtype = torch.promote_types(dtype, parameter.dtype)
    return dtype


def on_batch_statistics(model: nn.Module, *, mode: str) -> list[bool]:
    """For every BatchNorm, whether it normalises by its batch: in training, and without stored statistics always."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    fixed = {"eval": False, "train": True}.get(mode)
    return [(norm.training if fixed is None else fixed) or norm.running_mean is None for norm in norms]
