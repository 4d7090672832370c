"""A penalised spline over offset: a smooth profile without a prescribed form."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

KNOTS = 8
"""Intervals of the spline; the penalty decides how smooth it is."""

MAX_ITERATIONS = 30

SETTLED = 4
"""Iterations after which the penalty is not changed any more."""

BISECTIONS = 40


class Spline(NamedTuple):
    """Expected counts of a smooth profile, shape ``(energy, offset)``, and their response.

    That is how ln(value) of each offset bin changes with ln(counts) of each, shape ``(energy, offset, offset)``.
    """

    value: NDArray
    response: NDArray


def fit_spline(counts: NDArray, exposure: NDArray, offset_edges: ArrayLike, dof: float) -> Spline:
    """Cubic B-spline of ln(counts / exposure) in offset, by Poisson likelihood, with a penalty on its curvature.

    The profile is even in offset, as that of a field without a cusp in its centre.  The penalty (on third differences
    of the coefficients, after Eilers and Marx 1996) is such that the fit has ``dof`` effective degrees of freedom,
    the trace of the matrix from counts to expected counts; with two it is a Gaussian.  The counts of each energy are
    conserved, as the penalty does not depend on the normalisation.

    Parameters
    ----------
    counts, exposure
        Counts and exposure (in any unit), shape ``(energy, offset)``; bins without exposure have no influence.
    offset_edges
        Edges of the offset bins [deg].
    dof
        Effective degrees of freedom, at least 2, effectively at most the number of offset bins with exposure.

    Raises
    ------
    ValueError
        If ``dof`` is less than 2.

    Examples
    --------
    >>> edges = np.linspace(0, 2, 9)
    >>> gaussian = 1000 * np.exp(-0.5 * ((edges[1:] + edges[:-1]) / 2) ** 2)[None]
    >>> bool(np.allclose(fit_spline(gaussian, np.ones((1, 8)), edges, dof=2).value, gaussian, rtol=1e-6))
    True
    """
    if dof < 2:
        raise ValueError(f"a spline has at least 2 degrees of freedom, normalisation and width, got {dof:g}")
    basis, penalty = _basis(tuple(float(edge) for edge in np.asarray(offset_edges)))
    counts = np.where(exposure > 0, counts, 0.0)
    total, seen = counts.sum(axis=1, keepdims=True), exposure.sum(axis=1, keepdims=True)
    norm = np.divide(total, seen, out=np.zeros_like(total), where=seen > 0)
    beta, dof = np.zeros((counts.shape[0], basis.shape[1])), min(dof, basis.shape[0])
    strength = np.zeros((counts.shape[0], 1, 1))
    for iteration in range(MAX_ITERATIONS):
        mu = norm * exposure * np.exp(beta @ basis.T)
        fisher = np.einsum("er,ri,rj->eij", mu, basis, basis)
        if iteration < SETTLED:
            strength = _strength(fisher, penalty, dof)[:, None, None] * penalty
        fisher = _regular(fisher + strength)
        gradient = (counts - mu) @ basis - np.einsum("eij,ej->ei", strength, beta)
        # a Newton step from far away overshoots
        step = np.clip(np.linalg.solve(fisher, gradient[..., None])[..., 0], -1, 1)
        beta += step
        if iteration >= SETTLED and np.abs(step).max() < 1e-6:
            break
    factor = np.exp(beta @ basis.T)
    response = basis @ np.linalg.solve(fisher, basis.T[None] * counts[:, None, :])
    return Spline(norm * exposure * factor, response)


@lru_cache(maxsize=8)
def _basis(offset_edges: tuple[float, ...]) -> tuple[NDArray, NDArray]:
    """B-splines at the centres of the offset bins, shape ``(offset, spline)``, and the matrix of the penalty."""
    from scipy.interpolate import BSpline

    edges = np.array(offset_edges)
    intervals = 2 * min(KNOTS, edges.size - 1)
    knots = edges[-1] * (2 * np.arange(-3, intervals + 4) / intervals - 1)
    whole = BSpline.design_matrix((edges[1:] + edges[:-1]) / 2, knots, 3).toarray()
    # even in offset: both sides of the centre have the same coefficients
    n = whole.shape[1]
    fold = np.eye(n)[:, n // 2 :] + np.eye(n)[::-1, n // 2 :] * (np.arange(n // 2, n) != (n - 1) / 2)
    bend = np.diff(np.eye(n), 3, axis=0) @ fold
    return whole @ fold, bend.T @ bend


def _strength(fisher: NDArray, penalty: NDArray, dof: float) -> NDArray:
    """Factor of the penalty that leaves ``dof`` degrees of freedom, shape ``(energy,)``."""
    scale = np.maximum(np.trace(fisher, axis1=1, axis2=2), np.finfo(float).tiny)
    root = np.linalg.inv(np.linalg.cholesky(_regular(fisher + scale[:, None, None] * penalty)))
    # of each direction the shares of counts and penalty
    share = np.clip(np.linalg.eigvalsh(root @ fisher @ root.swapaxes(1, 2)), 0, 1)
    low, high = np.full((scale.size, 1), -25.0), np.full((scale.size, 1), 25.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        left = np.divide(share, share + np.exp(middle) * (1 - share), out=np.zeros_like(share), where=share > 0)
        stiff = left.sum(axis=1, keepdims=True) < dof
        high, low = np.where(stiff, middle, high), np.where(stiff, low, middle)
    return scale * np.exp(low[:, 0])


def _regular(matrix: NDArray) -> NDArray:
    """A regular matrix, even if there are fewer offset bins than splines, or no counts."""
    size = np.trace(matrix, axis1=1, axis2=2)
    return matrix + (1e-11 * size + np.finfo(float).tiny)[:, None, None] * np.eye(matrix.shape[-1])
