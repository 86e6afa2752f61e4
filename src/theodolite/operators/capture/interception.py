"""Interception of every torch function in a forward pass: which operations read parameters and data, and what flows by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from theodolite.operators.capture.handlers import plan_for
from theodolite.operators.capture.recurrent import STEPS
from theodolite.operators.capture.site import Operand, Plan, Site
from theodolite.operators.capture.trees import replaced, tensors_in

# Where a tensor comes from: parameters alone; the batch; the batch indexed by data; the output of a site.
PARAMETRIC, DATA, ROUTED, FED = 1, 2, 4, 8
MARK = "_theodolite_origin"
# Python functions of torch whose bodies call operations that are intercepted one by one.
TRANSPARENT = {"torch.nn.functional", "torch.functional"}
# Most calls by far ask for shapes and flags.
UNWATCHED = {"__get__", "__set__", "dim", "size", "stride", "is_floating_point", "is_complex", "data_ptr", "numel"}
# With data for an index these may reorder samples in a way that depends on the data.
ROUTING = {"__getitem__", "index_select", "gather", "take_along_dim", "take", "masked_select", "__setitem__"}


class Delivery:
    """Takes the gradients of sites' outputs from the graph, which keeps it alive, to whoever listens."""

    def __init__(self) -> None:
        self.listener: Callable[[int, Tensor], None] | None = None

    def deliver(self, index: int, gradient: Tensor) -> None:
        """Hook of a site's output."""
        if self.listener is not None:
            self.listener(index, gradient)


class Recorder(TorchFunctionMode):
    """Follows data and parameters through a forward pass, and cuts parameters off where data meets them.

    A tensor is *parametric* if it was computed from parameters alone, and *data* if the batch went into it; *routed* data was
    indexed by data on the way. An operation that reads parameters and data is a site: its parametric arguments are replaced
    by leaves on the same storage, so that the backward pass computes no weight gradients, and the gradient of its output goes
    to ``delivery``. A parameter that reaches the loss on any other way keeps its gradient there, which tells that the sites
    do not have all of it.

    Args:
        parameters: the parameters by name.
        data: tensors of the batch.

    Attributes:
        sites: the sites so far, in the order of the forward pass.
        routed: whether a site reads routed data, in which samples may be reordered at every pass.
        delivery: where gradients of sites arrive in backward passes.
    """

    def __init__(self, parameters: Mapping[str, Tensor], data: Iterable[Tensor]) -> None:
        super().__init__()
        self._parameters = {id(tensor): name for name, tensor in parameters.items()}
        self._batch = {id(tensor): tensor for tensor in data}
        self._met: dict[tuple[object, ...], int] = {}
        self.sites: list[Site] = []
        self.routed = False
        self.delivery = Delivery()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in UNWATCHED:
            result = func(*args, **kwargs)
            if isinstance(result, Tensor):  # x.T and the like
                self._mark(result, self._origin(args[0]))
            return result
        parametric, data, origins = [], [], 0
        for tensor in tensors_in((args, kwargs)):
            origin = self._origin(tensor)
            origins |= origin
            if origin == PARAMETRIC:
                parametric.append(tensor)
            elif origin:
                data.append(tensor)
        if parametric and data and torch.is_grad_enabled():
            result = self._meet(func, args, kwargs, parametric, data)
            origins |= FED
        else:
            result = func(*args, **kwargs)
        if name in ROUTING and data and any(self._origin(tensor) & DATA for tensor in tensors_in(_index(name, args))):
            origins |= ROUTED
        self._mark(args[:1] if result is None else result, origins & ~PARAMETRIC if data else origins)
        return result

    def _meet(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], parametric: list[Tensor], data: list[Tensor]
    ) -> Any:
        """An operation that reads parameters and data: taken apart if it is made of others, otherwise a site."""
        inner = STEPS.get(func) or _transparent(func)
        if inner is not None:
            with self:
                result = inner(*args, **kwargs)
            if result is not NotImplemented:
                return result
        plan = plan_for(func, args, kwargs, parametric)
        return func(*args, **kwargs) if plan is None else self._site(func, args, kwargs, parametric, data, plan)

    def _site(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        parametric: list[Tensor],
        data: list[Tensor],
        plan: Plan,
    ) -> Any:
        leaves = {id(tensor): tensor.detach().requires_grad_() for tensor in parametric}
        origins = [self._origin(tensor) for tensor in data]
        fed = any(tensor.requires_grad and origin & FED for tensor, origin in zip(data, origins, strict=True))
        result = func(*replaced(args, leaves), **replaced(kwargs, leaves))
        if not isinstance(result, Tensor):
            return func(*args, **kwargs)  # of several outputs each would need its own gradient: for the fallback
        if not result.requires_grad:
            return result
        self.routed = self.routed or any(origin & ROUTED for origin in origins)
        unique = {id(tensor): tensor for tensor in parametric}
        what = (getattr(func, "__name__", str(func)), *(self._identity(tensor) for tensor in unique.values()))
        self._met[what] = self._met.get(what, 0) + 1
        index = len(self.sites)
        self.sites.append(
            Site(
                index=index,
                key=(*what, self._met[what]),
                operands=[Operand(tensor, plan.recipes[key]) for key, tensor in unique.items()],
                shape=tuple(result.shape),
                trailing=plan.trailing,
                edge=get_gradient_edge(result),
                first=not fed,
            )
        )
        result.register_hook(partial(self.delivery.deliver, index))
        return result

    def _origin(self, tensor: Tensor) -> int:
        mark: int | None = getattr(tensor, MARK, None)
        if mark is not None:
            # One whole number, such as that of an expert, chooses among parameters but belongs to no sample.
            return 0 if tensor.dim() == 0 and not tensor.is_floating_point() else mark
        if id(tensor) in self._parameters:
            return PARAMETRIC
        # What needs a gradient and carries no mark came through code that is not intercepted.
        return DATA if id(tensor) in self._batch or tensor.requires_grad else 0

    def _identity(self, tensor: Tensor) -> tuple[object, ...]:
        """What tells parametric tensors apart in passes over other data: which parameter they view, and where."""
        name = self._parameters.get(id(tensor if tensor._base is None else tensor._base))
        return () if name is None else (name, tensor.storage_offset())

    def _mark(self, result: Any, origin: int) -> None:
        if not origin:
            return
        for tensor in tensors_in(result):
            known = id(tensor) in self._batch or id(tensor) in self._parameters
            if not known and (origin != PARAMETRIC or tensor.requires_grad):
                setattr(tensor, MARK, origin)


def _index(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a tensor is indexed by; an assignment also has the values."""
    return args[1:2] if name in ("__getitem__", "__setitem__") else args[1:]


@cache
def _transparent(func: Any) -> Callable[..., Any] | None:
    """A Python function of torch that goes straight to its body instead of asking for interception again."""
    if not isinstance(func, FunctionType) or func.__module__ not in TRANSPARENT:
        return None
    never = {name: lambda *_: False for name in func.__globals__ if name.startswith("has_torch_function")}
    inner = FunctionType(func.__code__, func.__globals__ | never, func.__name__, func.__defaults__, func.__closure__)
    inner.__kwdefaults__ = func.__kwdefaults__
    return inner
