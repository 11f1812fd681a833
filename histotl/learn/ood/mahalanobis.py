"""Distance to the nearest class mean in the metric of the training features (Lee et al. 2018), with OAS shrinkage."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from histotl.core.registry import register
from histotl.learn.ood.base import State

VARIANCE_MIN = 1e-12
"""Least variance of a feature, so that features that never change can still be scored in float32."""


@register("ood", "mahalanobis")
@dataclass(frozen=True, kw_only=True)
class Mahalanobis:
    """min over classes of (z - mu_c)^T S^-1 (z - mu_c), S the pooled within-class covariance, OAS-shrunk.

    Shrinkage (Chen, Wiesel, Eldar, Hero 2010) keeps it meaningful when there are fewer rows than dimensions, where a
    plain inverse fails. Fitted in float64; scored by one product with the whitening matrix.

    Args:
        chunk: Rows in one product while scoring.
    """

    chunk: int = 8192

    def fit(self, features: torch.Tensor, labels: torch.Tensor | None) -> State:
        """Fit means and metric; rows of unknown class form a cluster only when no class is known at all."""
        z = features.to(torch.float64)
        if labels is not None and bool((labels >= 0).any()):
            keep = labels >= 0
            z, classes = z[keep], torch.unique(labels[keep], return_inverse=True)[1]
        else:
            classes = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        counts = torch.bincount(classes).to(torch.float64)
        means = torch.zeros(len(counts), z.shape[1], dtype=torch.float64, device=z.device).index_add_(0, classes, z)
        means /= counts[:, None]
        residual = z - means[classes]
        center = z.mean(dim=0)
        whiten = _whitener(oas(residual.T @ residual / len(z), len(z)))
        return {
            "center": center.float(),
            "whiten": whiten.float(),
            "means": ((means - center) @ whiten.T).float(),
        }

    def score(self, state: State, features: torch.Tensor) -> torch.Tensor:
        """Squared distance float32 (n,)."""
        means = state["means"]
        scores = []
        for rows in torch.split(features, self.chunk):
            white = (rows.float() - state["center"]) @ state["whiten"].T
            scores.append(torch.stack([(white - mean).square().sum(dim=1) for mean in means]).amin(dim=0))
        return torch.cat(scores) if scores else features.new_zeros(0, dtype=torch.float32)


def oas(covariance: torch.Tensor, n: int) -> torch.Tensor:
    """Oracle approximating shrinkage of a covariance (divisor n) towards m I, m = tr(S) / D.

    rho = min(1, (mean(S_ij^2) + m^2) / ((n + 1) (mean(S_ij^2) - m^2 / D))), S* = (1 - rho) S + rho m I.

    Args:
        covariance: float64 (D, D).
        n: Rows that it was estimated from.
    """
    width = len(covariance)
    spread, size = covariance.square().mean(), covariance.diagonal().mean()
    denominator = (n + 1) * (spread - size**2 / width)
    rho = torch.where(denominator > 0, ((spread + size**2) / denominator).clamp(max=1), torch.ones_like(size))
    shrunk = (1 - rho) * covariance
    # A floor far below the data's scale keeps constant features from making the matrix singular.
    floor = max(1e-8 * float(covariance.diagonal().max()), VARIANCE_MIN)
    shrunk.diagonal().add_(torch.clamp(rho * size, min=floor))
    return shrunk


def _whitener(covariance: torch.Tensor) -> torch.Tensor:
    """A with A S A^T = I: the inverse of the Cholesky factor."""
    factor = torch.linalg.cholesky(covariance)
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    inverse: torch.Tensor = torch.linalg.solve_triangular(factor, eye, upper=False)
    return inverse
