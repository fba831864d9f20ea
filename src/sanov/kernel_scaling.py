"""Sinkhorn's iteration as products of a matrix and a vector, safe where the kernel underflows.

The plan of entropic transport is ``diag(u) K diag(v)`` with ``K = exp(-cost / epsilon)``. A round scales first the
rows, ``u = a / K v``, then the columns, ``v = b / K'u``. That is cheap but, at small `epsilon`, out of the range of
floating point; the same half-steps on ``log u`` are always in range, but take an exponential of every entry each time.
So potentials are absorbed into the kernel, ``K = exp(log_u + log_v - cost / epsilon)``, on top of which u and v stay
near 1. Rounds run in blocks of plain products. A block that left the safe range is thrown away: one round is done in
the logarithmic domain in its place, its potentials are absorbed, and plain products go on from there.

Shapes here: a single problem has a cost [n, m] and vectors [n] and [m], so that a product is one `torch.mv`; a batch
has [batch, n, m], [batch, n, 1] and [batch, m, 1], for `torch.bmm`.

Reference: cuturi2013sinkhorn, alg. 1; schmitzer2019stabilized, sec. 3.1 (absorption); lehmann2022overrelaxation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sanov.core.errors import InputError

__all__ = ["Scaling", "as_column", "as_row", "gibbs_kernel", "product_with", "safe_range", "scale"]

BLOCK = 32  # rounds between two looks at the range
CHECKED_BLOCK = 4  # the same where each look also measures the marginal error
LARGEST_RELAXATION = 1.999  # below 2, where it diverges


@dataclass(frozen=True, slots=True)
class Scaling:
    """A scaled kernel, its row sums, and log u and log v.

    The history, where it was recorded, has both after every round, and log v before the first one too.
    """

    plan: Tensor
    log_u: Tensor
    log_v: Tensor
    row_sums: Tensor
    rounds: int
    history: tuple[Tensor, Tensor] | None


def as_column(u: Tensor) -> Tensor:
    """View a vector of the rows such that it multiplies a matrix row by row."""
    return u.unsqueeze(-1) if u.ndim == 1 else u


def as_row(v: Tensor) -> Tensor:
    """View a vector of the columns such that it multiplies a matrix column by column."""
    return v if v.ndim == 1 else v.mT


def product_with(matrix: Tensor) -> Callable[..., Tensor]:
    """Return the function of a matrix, or a batch of them, and a vector that multiplies the two."""
    return torch.mv if matrix.ndim == 2 else torch.bmm


def safe_range(dtype: torch.dtype) -> float:
    """Largest |log u| and |log v| on top of a kernel at which both together leave its cut entries negligible."""
    return math.log(torch.finfo(dtype).max) / 4


def gibbs_kernel(cost: Tensor, epsilon: float, log_u: Tensor, log_v: Tensor, out: Tensor | None = None) -> Tensor:
    """``exp(log_u + log_v - cost / epsilon)``, cut from below: subnormal numbers make products many times slower."""
    floor = -3.6 * safe_range(cost.dtype)
    return torch.add(as_column(log_u), cost, alpha=-1 / epsilon, out=out).add_(as_row(log_v)).clamp_(min=floor).exp_()


def scale(
    cost: Tensor,
    epsilon: float,
    row: Tensor,
    column: Tensor,
    iterations: int,
    tolerance: float | None,
    *,
    record: bool,
) -> Scaling:
    """Scale the kernel of `cost` to row sums `row` and column sums `column`, rows first.

    Without `tolerance`, exactly `iterations` plain rounds. With it, rounds go on until the marginal error of every
    problem of the batch is at most `tolerance`, and unless a history is recorded they are over-relaxed, which has the
    same fixed point. The last half-step is always a plain one of the columns.
    """
    longest = BLOCK if tolerance is None else CHECKED_BLOCK
    solver = _Solver(cost, epsilon, row, column, record)
    relaxation = _Relaxation(adapts=tolerance is not None and not record)
    size = longest if tolerance is None else longest // 2  # a few rounds may do
    while solver.rounds < iterations:
        size = min(size, iterations - solver.rounds)
        if solver.plain_block(size, relaxation.factor):
            done, size = size, min(2 * size, longest)
        else:
            solver.logarithmic_round()
            relaxation.restart()
            done = size = 1
        if tolerance is not None:
            error = solver.marginal_error()
            if error <= tolerance:
                break
            relaxation.update(error, done)
    return solver.result()


class _Solver:
    """The kernel around absorbed potentials, the scalings on top of it, and what was recorded."""

    def __init__(self, cost: Tensor, epsilon: float, row: Tensor, column: Tensor, record: bool):
        self.cost, self.epsilon, self.row, self.column = cost, epsilon, row, column
        self.rounds = 0
        self.history: list[tuple[Tensor, Tensor]] | None = [] if record else None
        self.matrix = torch.empty_like(cost, memory_format=torch.contiguous_format)
        self.product = product_with(cost)
        self.on_rows, self.on_columns = torch.empty_like(row), torch.empty_like(column)  # room for products
        self.bound = math.exp(safe_range(cost.dtype))
        # The first half-step does not depend on log_u, which only brings the largest entry of each row to 1.
        self._absorb((cost.amin(-1) / epsilon).view_as(row), torch.zeros_like(column))

    def _absorb(self, log_u: Tensor, log_v: Tensor) -> None:
        gibbs_kernel(self.cost, self.epsilon, log_u, log_v, out=self.matrix)
        self.log_u, self.log_v = log_u, log_v
        self.u, self.v = torch.ones_like(log_u), torch.ones_like(log_v)
        self.onward = self.v  # from where the next round starts: v, or its relaxed value

    def plain_block(self, rounds: int, relaxation: float) -> bool:
        """Run rounds of plain products and keep them, or return False if they left the safe range."""
        if relaxation == 1:
            us, vs = self._plain(rounds)
            onward = vs[-1]
        else:
            us, vs, onward = self._relaxed(rounds, relaxation)
        low, high = torch.cat(us + vs, 1 - us[0].ndim).aminmax()
        if not (low.item() >= 1 / self.bound and high.item() <= self.bound):
            return False
        if self.history is not None:
            self.history.append((self.log_u + torch.stack(us).log_(), self.log_v + torch.stack(vs).log_()))
        self.u, self.v, self.onward = us[-1], vs[-1], onward
        self.rounds += rounds
        return True

    def _plain(self, rounds: int) -> tuple[list[Tensor], list[Tensor]]:
        matrix, transposed, product, row, column = self.matrix, self.matrix.mT, self.product, self.row, self.column
        on_rows, on_columns, us, vs, v = self.on_rows, self.on_columns, [], [], self.onward
        for _ in range(rounds):
            u = row / product(matrix, v, out=on_rows)
            v = column / product(transposed, u, out=on_columns)
            us.append(u)
            vs.append(v)
        return us, vs

    def _relaxed(self, rounds: int, relaxation: float) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Go `relaxation` times as far in the logarithm; the last v is plain, and its relaxed value comes third."""
        matrix, transposed, product, row, column = self.matrix, self.matrix.mT, self.product, self.row, self.column
        on_rows, on_columns, us, vs, u, v = self.on_rows, self.on_columns, [], [], self.u, self.onward
        for _ in range(rounds):
            u = (row / product(matrix, v, out=on_rows)).div_(u).pow_(relaxation).mul_(u)
            plain = column / product(transposed, u, out=on_columns)
            v = (plain / v).pow_(relaxation).mul_(v)
            us.append(u)
            vs.append(v)
        return us, [*vs[:-1], plain], v

    def logarithmic_round(self) -> None:
        """Run one round on the logarithms of the scalings, from where the last kept round ended."""
        log_v = self.log_v + self.v.log()
        exponents = self.cost / -self.epsilon
        log_u = self.row.log() - torch.logsumexp(exponents + as_row(log_v), -1).view_as(self.row)
        log_v = self.column.log() - torch.logsumexp(exponents + as_column(log_u), -2).view_as(self.column)
        if not log_v.isfinite().all():
            raise InputError("some entries are NaN or infinite", where="cost", expected="finite costs")
        self._absorb(log_u, log_v)
        if self.history is not None:
            self.history.append((log_u.unsqueeze(0), log_v.unsqueeze(0)))
        self.rounds += 1

    def row_sums(self) -> Tensor:
        """Row sums of the plan."""
        return self.product(self.matrix, self.v, out=self.on_rows) * self.u

    def marginal_error(self) -> float:
        """L1 distance between the row sums and `row`, the largest of the batch."""
        distance = self.row_sums().sub_(self.row).abs_()
        return (distance.sum() if distance.ndim == 1 else distance.sum(1).max()).item()

    def result(self) -> Scaling:
        """Multiply the kernel by the scalings, in place."""
        history = None
        if self.history is not None:
            log_us, log_vs = zip(*self.history, strict=True)
            history = torch.cat(log_us), torch.cat([torch.zeros_like(log_vs[0][:1]), *log_vs])
        row_sums = self.row_sums()
        plan = self.matrix.mul_(as_column(self.u)).mul_(as_row(self.v))
        return Scaling(plan, self.log_u + self.u.log(), self.log_v + self.v.log(), row_sums, self.rounds, history)


class _Relaxation:
    """How far to over-relax, from the rate at which the marginal error falls.

    Close to its fixed point the iteration is that of Gauss and Seidel on a linear system, with a rate ``eta``; relaxed
    by ``omega`` it falls at a rate ``rho`` with ``(rho + omega - 1)^2 = omega^2 eta rho``, and fastest, at
    ``omega - 1``, for ``omega = 2 / (1 + sqrt(1 - eta))``. So each observed rho above omega - 1 tells eta.
    """

    def __init__(self, adapts: bool):
        self.adapts, self.factor, self.error = adapts, 1.0, math.inf

    def restart(self) -> None:
        """Forget the last error, which was that of another kernel."""
        self.factor, self.error = 1.0, math.inf

    def update(self, error: float, rounds: int) -> None:
        """Take in the marginal error after a block of that many rounds."""
        rate = (error / self.error) ** (1 / rounds)
        self.error = error
        if not self.adapts or rate == 0:
            return
        if not rate < 1:
            self.factor = 1.0
        elif rate > self.factor - 1:
            eta = (rate + self.factor - 1) ** 2 / (self.factor**2 * rate)
            best = 2 / (1 + math.sqrt(1 - min(eta, 1)))
            self.factor = min(max(self.factor, best), LARGEST_RELAXATION)
