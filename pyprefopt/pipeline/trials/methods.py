"""What must hold of every loss, tried on random rows in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from pyprefopt.pipeline.trials.rows import EDGES, SHAPES, Differs, Rows, as_tensor, dummy, find_worst, random_rows
from pyprefopt.training.step import method_sums

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.losses import Method
    from pyprefopt.types import PackedBatch

STEP = 1e-6  # of a log-prob, for finite differences
TOLERANCE = 1e-9  # relative and absolute, between two ways to compute the same
SLOPE_TOLERANCE = 1e-5  # between a derivative and finite differences


def method_checks(method: Method) -> Iterator[tuple[str, Callable[[], str]]]:
    """Each check by its name; it gives what was seen, and raises Differs for what differs."""
    rows = random_rows(method)
    yield SHAPES, partial(_shapes, method, rows)
    yield "gradient (float64)", partial(_gradient, method, random_rows(method, groups=3, longest=5))
    yield "packed as alone", partial(_packing, method, rows, "shared")
    yield "layouts", partial(_layouts, method, rows)
    yield "order of rows", partial(_order, method, rows)
    if method.trains_on != "candidates" and rows.selects:
        yield "selected tokens", partial(_packing, method, random_rows(method, select=True), "shared")
    if "reward_head" not in method.needs:
        yield "tokens without weight", partial(_unweighted, method)
    yield "same twice", partial(_pure, method, rows)
    yield "a batch that counts nothing", partial(_nothing, method, rows)
    for name, edge in EDGES.items():
        yield f"finite: {name}", partial(_edge, method, edge)


def _losses(method: Method, batch: PackedBatch, rows: Rows, values: Tensor, *, fixed: Tensor | None = None) -> Tensor:
    """What the trainer computes of a batch, [P] or [R]; `values` are the policy's log-probs, or scores, of all rows."""
    outputs = rows.outputs(batch, values)
    loss: Any = method.loss(method_sums(_Weighing(method, fixed), batch, outputs), batch)  # type: ignore[arg-type]
    return as_tensor(loss, "loss")


class _Weighing:
    """A method whose token weights may be held fixed, as training holds them when it takes the gradient."""

    def __init__(self, method: Method, fixed: Tensor | None) -> None:
        self.needs, self._method, self._fixed = method.needs, method, fixed

    def token_weights(self, batch: PackedBatch, logps: Tensor) -> Tensor:
        """Those of the method, once."""
        return (
            as_tensor(self._method.token_weights(batch, logps), "token_weights") if self._fixed is None else self._fixed
        )


def _shapes(method: Method, rows: Rows) -> str:
    batch, values = rows.batch(), rows.values().requires_grad_()
    responses, pairs = len(batch.response_row), len(batch.pair_chosen)
    outputs = rows.outputs(batch, values)
    if outputs.logps is not None:
        weights = as_tensor(method.token_weights(batch, outputs.logps.detach()), "token_weights")
        if weights.dim() != 2 or weights.shape[1] != len(batch.target_ids):
            raise Differs(f"token_weights must be [K, M], M = {len(batch.target_ids)}, got {list(weights.shape)}")
        if weights.requires_grad:
            raise Differs("token_weights must carry no gradient; compute them of the log-probs given, detached")
    sums = method_sums(method, batch, outputs)
    loss, rewards = as_tensor(method.loss(sums, batch), "loss"), as_tensor(method.rewards(sums, batch), "rewards")
    units = pairs if method.unit == "pair" else responses
    letter = "P" if method.unit == "pair" else "R"
    if list(loss.shape) != [units]:
        raise Differs(
            f"loss must be [{letter}] for unit {method.unit}, {letter} = {units}, got {list(loss.shape)}; the trainer "
            "sums and divides"
        )
    if list(rewards.shape) != [responses]:
        raise Differs(f"rewards must be [R], R = {responses}, got {list(rewards.shape)}")
    if loss.dtype != torch.float64:
        raise Differs(f"loss must keep the type of the sums, float64 here, got {loss.dtype}")
    if not loss.requires_grad:
        raise Differs("loss must have a gradient, and does not depend on sums.policy by one")
    return f"loss [{letter}], rewards [R]"


def _gradient(method: Method, rows: Rows) -> str:
    """Autograd against central differences, the weights held fixed; what detach() stops is told apart."""
    batch, base = rows.batch(), rows.values()
    with torch.no_grad():
        logps = rows.outputs(batch, base).logps
        fixed = None if logps is None else method.token_weights(batch, logps)

    def total(values: Tensor) -> Tensor:
        return _losses(method, batch, rows, values, fixed=fixed).sum()

    numeric = torch.zeros_like(base)
    with torch.no_grad():
        for at in range(len(base)):
            shifted = [base.clone(), base.clone()]
            shifted[0][at] += STEP
            shifted[1][at] -= STEP
            numeric[at] = (total(shifted[0]) - total(shifted[1])) / (2 * STEP)
    found = torch.autograd.grad(total(base.requires_grad_()), base)[0]
    worst = find_worst(found, numeric, SLOPE_TOLERANCE)
    if worst is None:
        return f"largest difference {(found - numeric).abs().max().item():.1e}"
    with _NoDetach():
        whole = torch.autograd.grad(total(base), base)[0]
    if find_worst(whole, numeric, SLOPE_TOLERANCE) is None:
        return "as finite differences, but for what detach() stops"
    raise Differs(
        f"{rows.name(worst)}: autograd gives {found[worst]:.6g}, finite differences {numeric[worst]:.6g}; look for "
        ".data, .item(), no_grad or a function without a derivative"
    )


class _NoDetach(TorchFunctionMode):
    """While inside, `detach` gives the tensor itself."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.Tensor.detach, torch.detach):
            return args[0]
        return function(*args, **(kwargs or {}))


Results = tuple[dict[int, torch.Tensor], torch.Tensor]  # loss by row, and the gradient by every log-prob (or score)


def _results(method: Method, rows: Rows, batches: Sequence[PackedBatch]) -> Results:
    values = rows.values().requires_grad_()
    by_row: dict[int, Tensor] = {}
    total = values.sum() * 0
    for batch in batches:
        losses = _losses(method, batch, rows, values)
        total = total + losses.sum()
        of = batch.response_row[batch.pair_chosen] if method.unit == "pair" else batch.response_row
        if len(of) != len(losses):
            raise Differs(f"loss must be one number a {'pair' if method.unit == 'pair' else 'response'}")
        for row, loss in zip(of.tolist(), losses.detach(), strict=True):
            by_row[row] = by_row.get(row, loss * 0) + loss
    return by_row, torch.autograd.grad(total, values)[0]


def _same(rows: Rows, one: Results, other: Results, ways: tuple[str, str]) -> str:
    """What both ways agree in. Raises Differs naming the first row, or the token, in which they do not."""
    for row, loss in one[0].items():
        if find_worst(loss[None], other[0][row][None], TOLERANCE) is not None:
            raise Differs(f"row {row}: the loss is {loss:.6g} {ways[0]} and {other[0][row]:.6g} {ways[1]}")
    worst = find_worst(one[1], other[1], TOLERANCE)
    if worst is not None:
        raise Differs(
            f"{rows.name(worst)}: the gradient is {one[1][worst]:.6g} {ways[0]} and {other[1][worst]:.6g} {ways[1]}"
        )
    return f"{len(one[0])} rows"


def _packing(method: Method, rows: Rows, layout: str) -> str:
    alone = _results(method, rows, [rows.batch([row], layout) for row in range(rows.count)])
    together = _results(method, rows, [rows.batch(layout=layout)])
    return _same(rows, alone, together, ("alone", f"in a batch of {rows.count}"))


def _layouts(method: Method, rows: Rows) -> str:
    shared, separate = (_results(method, rows, [rows.batch(layout=layout)]) for layout in ("shared", "separate"))
    return _same(rows, shared, separate, ("with one prompt for both", "with a prompt for each"))


def _order(method: Method, rows: Rows) -> str:
    order = list(range(rows.count))
    forward, backward = (_results(method, rows, [rows.batch(one)]) for one in (order, order[::-1]))
    return _same(rows, forward, backward, ("in one order", "in the reverse"))


def _unweighted(method: Method) -> str:
    """A token of user weight 0 is left out of batches, unless the method says that it reads it."""
    rows = random_rows(method, weights=True)
    kept, dropped = (
        _results(method, rows, [rows.batch(keep_unweighted=keep)]) for keep in (True, method.reads_unweighted)
    )
    try:
        return _same(rows, dropped, kept, ("without the tokens of weight 0", "with them"))
    except Differs as found:
        raise Differs(f"{found}; declare reads_unweighted = True if the weights are to depend on them") from None


def _pure(method: Method, rows: Rows) -> str:
    batch = rows.batch()
    before = batch.map(torch.clone)
    first, second = (_results(method, rows, [batch]) for _ in range(2))
    for name, array in vars(before).items():
        if array is not None and not torch.equal(array.nan_to_num(), getattr(batch, name).nan_to_num()):
            raise Differs(f"batch.{name} was changed; the functions of a method must leave it as it is")
    return _same(rows, first, second, ("the first time", "the second"))


def _nothing(method: Method, rows: Rows) -> str:
    """A rank with fewer micro-batches runs one masked token that belongs to no pair."""
    batch, values = dummy(rows), torch.full((1,), -2.0, dtype=torch.float64, requires_grad=True)
    loss = _losses(method, batch, replace(rows, alone=True), values).sum()
    gradient = torch.autograd.grad(loss, values, allow_unused=True)[0] if loss.requires_grad else None
    slope = 0.0 if gradient is None else gradient.item()
    if loss.item() != 0 or slope != 0:
        raise Differs(f"the loss must be 0, its gradient too, got {loss.item():.6g} and {slope:.6g}")
    return ""


def _edge(method: Method, edge: Callable[[Rows], Rows]) -> str:
    rows = edge(random_rows(method))
    losses, gradient = _results(method, rows, [rows.batch()])
    for row, loss in losses.items():
        if not loss.isfinite():
            raise Differs(f"row {row}: the loss is {loss:.6g}")
    bad = (~gradient.isfinite()).nonzero()
    if len(bad):
        raise Differs(f"{rows.name(int(bad[0]))}: the gradient is {gradient[bad[0]].item():.6g}")
    return ""
