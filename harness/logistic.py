"""Ridge-penalised logistic regression on many small problems at once, such as the episodes of few-shot learning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import UserError

ITERATIONS = 1000
TOLERANCE = 1e-7  # largest change of a probability in a step at which all problems count as solved


@torch.no_grad()
def fit_logistic(
    features: Tensor, labels: Tensor, num_classes: int, *, strength: float = 1.0, iterations: int = ITERATIONS
) -> Tensor:
    """E multinomial logistic regressions without bias: weights [E, F, C], in float32.

    Each minimises the sum over its n samples of the cross-entropy, plus strength / 2 times the squared norm of its
    weights: scikit-learn's LogisticRegression(C=1 / strength, fit_intercept=False). Since the weights lie in the span
    of the samples, n x n kernels stand for F x F matrices. Each step minimises Böhning's quadratic upper bound of the
    objective (Annals of the Institute of Statistical Mathematics 44, 1992, 197-200), so it never gets worse and needs
    no step size; a problem does not depend on its neighbours but for when all of them stop.

    Args:
        features: [E, n, F], of norm around 1: the larger they are against `strength`, the more steps are needed.
        labels: [E, n] int64.

    Raises:
        ValueError: a strength that is not positive.
        UserError: no convergence: features too large for the penalty.
    """
    if strength <= 0:
        raise ValueError(f"strength {strength} must be positive: without a penalty separable classes have no optimum")
    features = features.double()
    target = F.one_hot(labels, num_classes).double()  # [E, n, C]
    kernel = features @ features.transpose(1, 2)  # [E, n, n]
    bound = kernel / 2 + strength * torch.eye(kernel.shape[1], dtype=kernel.dtype, device=kernel.device)
    factor = torch.linalg.cholesky(bound)
    dual, before = torch.zeros_like(target), torch.full_like(target, 1 / num_classes)
    for _ in range(iterations):
        # Weights are features^T dual; the step of the weights is features^T times this one.
        residual = before - target + strength * dual
        dual -= torch.cholesky_solve(residual, factor)
        after = (kernel @ dual).softmax(dim=-1)
        moved, before = (after - before).abs().max(), after
        if moved < TOLERANCE:
            return (features.transpose(1, 2) @ dual).float()
    raise UserError(
        f"a logistic regression has not converged after {iterations} steps: its features have norms up to "
        f"{features.norm(dim=-1).max().item():.3g} under a penalty of {strength:g}; normalise them or raise it"
    )
