"""Recurrent layers step by step, so that each use of their weights is a linear operation of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = tuple[Tensor, ...]
# One step from projected input and state.
Step = Callable[[Tensor, State, "Weights"], State]


class Weights:
    """Weights of one layer in one direction.

    Args:
        tensors: input and recurrent weight, their biases if ``biased``, and the projection of an LSTM with one.
        biased: whether there are biases.
    """

    def __init__(self, tensors: list[Tensor], *, biased: bool) -> None:
        self.w_ih, self.w_hh = tensors[:2]
        self.b_ih: Tensor | None = tensors[2] if biased else None
        self.b_hh: Tensor | None = tensors[3] if biased else None
        self.w_hr = tensors[-1] if len(tensors) % 2 else None

    def project(self, inputs: Tensor) -> Tensor:
        """Inputs of all steps at once."""
        return F.linear(inputs, self.w_ih, self.b_ih)

    def recur(self, h: Tensor) -> Tensor:
        """What the state adds."""
        return F.linear(h, self.w_hh, self.b_hh)


def _lstm_step(projected: Tensor, state: State, weights: Weights) -> State:
    h, c = state
    i, f, g, o = (projected + weights.recur(h)).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if weights.w_hr is None else F.linear(h, weights.w_hr)), c


def _gru_step(projected: Tensor, state: State, weights: Weights) -> State:
    (h,) = state
    r_in, z_in, n_in = projected.chunk(3, dim=-1)
    r_h, z_h, n_h = weights.recur(h).chunk(3, dim=-1)
    r, z = (r_in + r_h).sigmoid(), (z_in + z_h).sigmoid()
    n = (n_in + r * n_h).tanh()
    return (n + z * (h - n),)


def _rnn_step(activation: Callable[[Tensor], Tensor]) -> Step:
    def step(projected: Tensor, state: State, weights: Weights) -> State:
        return (activation(projected + weights.recur(state[0])),)

    return step


def _layers(step: Step) -> Callable[..., Any]:
    """The function behind ``nn.LSTM`` and its kin, for inputs of equal length."""

    def run(*args: Any) -> Any:
        if not isinstance(args[3], bool):
            return NotImplemented  # packed sequences: (data, lengths, state, weights, …)
        inputs, state, weights, biased, layers, dropout, training, bidirectional, batch_first = args
        directions = 2 if bidirectional else 1
        size = len(weights) // (layers * directions)
        h = inputs.transpose(0, 1) if batch_first else inputs
        # The initial state belongs to the samples also where it is zero.
        states = [
            part + torch.zeros_like(h[0, :, :1]) for part in (state if isinstance(state, tuple | list) else (state,))
        ]
        finals: list[State] = []
        for layer in range(layers):
            outputs = []
            for direction in range(directions):
                place = layer * directions + direction
                own = Weights(list(weights[place * size : (place + 1) * size]), biased=biased)
                output, final = _scan(step, h, tuple(part[place] for part in states), own, backwards=direction == 1)
                outputs.append(output)
                finals.append(final)
            h = torch.cat(outputs, dim=-1) if directions == 2 else outputs[0]
            if dropout and training and layer < layers - 1:
                h = F.dropout(h, dropout, training=True)
        output = h.transpose(0, 1) if batch_first else h
        return (output, *(torch.stack(parts) for parts in zip(*finals, strict=True)))

    return run


def _scan(step: Step, inputs: Tensor, state: State, weights: Weights, *, backwards: bool) -> tuple[Tensor, State]:
    projected = weights.project(inputs).unbind(0)
    outputs = []
    for frame in reversed(projected) if backwards else projected:
        state = step(frame, state, weights)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _cell(step: Step) -> Callable[..., Any]:
    """The function behind ``nn.LSTMCell`` and its kin."""

    def run(
        inputs: Tensor,
        state: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        biased = b_ih is not None and b_hh is not None
        weights = Weights([w_ih, w_hh, b_ih, b_hh] if biased else [w_ih, w_hh], biased=biased)  # type: ignore[list-item]
        found = step(weights.project(inputs), tuple(state) if isinstance(state, tuple | list) else (state,), weights)
        return found if len(found) > 1 else found[0]

    return run


STEPS: dict[Any, Callable[..., Any]] = {
    torch.lstm: _layers(_lstm_step),
    torch.gru: _layers(_gru_step),
    torch.rnn_tanh: _layers(_rnn_step(torch.tanh)),
    torch.rnn_relu: _layers(_rnn_step(torch.relu)),
    torch.lstm_cell: _cell(_lstm_step),
    torch.gru_cell: _cell(_gru_step),
    torch.rnn_tanh_cell: _cell(_rnn_step(torch.tanh)),
    torch.rnn_relu_cell: _cell(_rnn_step(torch.relu)),
}
