"""A penalised spline through the rings: a smooth profile that the counts ask for, without a form given beforehand.

Pure arrays: offsets deg; axes ``energy``, then ``ring`` (of offset).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

KNOTS = 8
"""Intervals of the spline; how smooth it is, is up to the penalty."""

MAX_ITERATIONS = 30

SETTLED = 4
"""Iterations after which the penalty stays as it is."""

BISECTIONS = 40


class Spline(NamedTuple):
    """A smooth profile of each energy.

    Attributes
    ----------
    value
        Expected counts, shape ``(energy, ring)``.
    response
        How ln(value) of each ring changes with ln(counts) of each, shape ``(energy, ring, ring)``.
    """

    value: NDArray
    response: NDArray


def fit_spline(counts: NDArray, exposure: NDArray, offset_edges: ArrayLike, dof: float) -> Spline:
    """Cubic B-spline of ln(counts / exposure) in offset, by Poisson likelihood, with a penalty on its bends.

    The profile is even in offset, as that of a field without a cusp in its centre.  The penalty (on third differences
    of the coefficients, after Eilers and Marx 1996) is such that the fit has ``dof`` effective degrees of freedom,
    the trace of what takes counts to expected counts; with two it is a Gaussian.  What is expected of an energy are
    its counts, as the penalty does not know of the level.

    Parameters
    ----------
    counts, exposure
        Shape ``(energy, ring)``; a ring without exposure does not matter, and gets what the spline has there.
    offset_edges
        Ring edges [deg].
    dof
        Effective degrees of freedom, at least 2; more than there are rings with exposure are no more than these.

    Examples
    --------
    >>> edges = np.linspace(0, 2, 9)
    >>> gaussian = 1000 * np.exp(-0.5 * ((edges[1:] + edges[:-1]) / 2) ** 2)[None]
    >>> bool(np.allclose(fit_spline(gaussian, np.ones((1, 8)), edges, dof=2).value, gaussian, rtol=1e-6))
    True
    """
    if dof < 2:
        raise ValueError(f"a spline has at least 2 degrees of freedom, level and width, got {dof:g}")
    basis, penalty = _basis(tuple(float(edge) for edge in np.asarray(offset_edges)))
    counts = np.where(exposure > 0, counts, 0.0)
    total, seen = counts.sum(axis=1, keepdims=True), exposure.sum(axis=1, keepdims=True)
    level = np.divide(total, seen, out=np.zeros_like(total), where=seen > 0)
    beta, dof = np.zeros((counts.shape[0], basis.shape[1])), min(dof, basis.shape[0])
    strength = np.zeros((counts.shape[0], 1, 1))
    for iteration in range(MAX_ITERATIONS):
        mu = level * exposure * np.exp(beta @ basis.T)
        fisher = np.einsum("er,ri,rj->eij", mu, basis, basis)
        if iteration < SETTLED:
            strength = _strength(fisher, penalty, dof)[:, None, None] * penalty
        fisher = _regular(fisher + strength)
        gradient = (counts - mu) @ basis - np.einsum("eij,ej->ei", strength, beta)
        # a step of Newton's from far away overshoots
        step = np.clip(np.linalg.solve(fisher, gradient[..., None])[..., 0], -1, 1)
        beta += step
        if iteration >= SETTLED and np.abs(step).max() < 1e-6:
            break
    factor = np.exp(beta @ basis.T)
    response = basis @ np.linalg.solve(fisher, basis.T[None] * counts[:, None, :])
    return Spline(level * exposure * factor, response)


@lru_cache(maxsize=8)
def _basis(offset_edges: tuple[float, ...]) -> tuple[NDArray, NDArray]:
    """B-splines in the middle of the rings, shape ``(ring, spline)``, and the matrix of the penalty."""
    from scipy.interpolate import BSpline

    edges = np.array(offset_edges)
    intervals = 2 * min(KNOTS, edges.size - 1)
    knots = edges[-1] * (2 * np.arange(-3, intervals + 4) / intervals - 1)
    whole = BSpline.design_matrix((edges[1:] + edges[:-1]) / 2, knots, 3).toarray()
    # what lies left of the centre is what lies right of it
    n = whole.shape[1]
    fold = np.eye(n)[:, n // 2 :] + np.eye(n)[::-1, n // 2 :] * (np.arange(n // 2, n) != (n - 1) / 2)
    bend = np.diff(np.eye(n), 3, axis=0) @ fold
    return whole @ fold, bend.T @ bend


def _strength(fisher: NDArray, penalty: NDArray, dof: float) -> NDArray:
    """Factor of the penalty that leaves so many degrees of freedom, one for each energy."""
    scale = np.maximum(np.trace(fisher, axis1=1, axis2=2), np.finfo(float).tiny)
    root = np.linalg.inv(np.linalg.cholesky(_regular(fisher + scale[:, None, None] * penalty)))
    # of each direction how much of it is the counts' and how much the penalty's
    share = np.clip(np.linalg.eigvalsh(root @ fisher @ root.swapaxes(1, 2)), 0, 1)
    low, high = np.full((scale.size, 1), -25.0), np.full((scale.size, 1), 25.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        left = np.divide(share, share + np.exp(middle) * (1 - share), out=np.zeros_like(share), where=share > 0)
        stiff = left.sum(axis=1, keepdims=True) < dof
        high, low = np.where(stiff, middle, high), np.where(stiff, low, middle)
    return scale * np.exp(low[:, 0])


def _regular(matrix: NDArray) -> NDArray:
    """A matrix that can be solved: where there are fewer rings than splines, or no counts, some are free."""
    size = np.trace(matrix, axis1=1, axis2=2)
    return matrix + (1e-11 * size + np.finfo(float).tiny)[:, None, None] * np.eye(matrix.shape[-1])
