"""Minimum of a differentiable function of a few numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor


def minimise(
    loss: Callable[[Tensor], Tensor],
    begin: NDArray[np.float64],
    bounds: Sequence[tuple[float, float]] | None = None,
    tolerance: float | None = None,
) -> Tensor:
    """Where a loss is least, by L-BFGS-B with gradients of autograd; double precision.

    Args:
        loss: Of ``(n,)`` numbers.
        begin: Where to begin, ``(n,)``.
        bounds: Least and largest of each number.
        tolerance: Relative change of the loss at which to stop; ``None``: scipy's own.

    Returns:
        Shape ``(n,)``.
    """

    def with_gradient(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        at = torch.tensor(values, requires_grad=True)
        value = loss(at)
        (gradient,) = torch.autograd.grad(value, at)
        return float(value.detach()), gradient.numpy()

    with torch.inference_mode(False), torch.enable_grad():  # a test step switches them off
        found = minimize(
            with_gradient, begin, jac=True, method="L-BFGS-B", bounds=bounds, tol=tolerance
        )
    return torch.from_numpy(found.x)
