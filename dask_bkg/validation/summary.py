"""Results for all runs: sums over runs, and their errors by a bootstrap over objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_bkg.validation.results import Validation, common_runs
from dask_bkg.validation.score import AXES, FORMS, SUMS

DRAWS = 1000
SEED = 20_240_601
CHUNK = 4_000_000
"""Numbers that the bootstrap processes at a time."""

Statistic = Callable[[NDArray], NDArray]


def bootstrap_error(
    sums: NDArray, group: NDArray, statistic: Statistic, *, draws: int = DRAWS, seed: int = SEED
) -> NDArray:
    """Standard deviation of a statistic of sums over runs, if objects are drawn with replacement.

    Parameters
    ----------
    sums
        Terms of the sums, shape ``(runs, n)``.
    group
        Number of the object of each run, shape ``(runs,)``.
    statistic
        From sums, shape ``(draws, n)``, to numbers, shape ``(draws,)`` or ``(draws, m)``.
    draws, seed
        Number of samples, and the seed: the same numbers give the same error.

    Returns
    -------
    error
        A number, or shape ``(m,)``; NaN if there is one object only.

    Examples
    --------
    >>> sums = np.random.default_rng(1).normal(size=(100, 1))
    >>> error = bootstrap_error(sums, np.arange(100), lambda total: total[:, 0] / 100)
    >>> bool(abs(error - 0.1) < 0.02)
    True
    """
    _, index = np.unique(group, return_inverse=True)
    n = int(index.max()) + 1
    of_object = np.zeros((n, sums.shape[1]))
    np.add.at(of_object, index, sums)
    if n < 2:
        return np.full_like(np.asarray(statistic(of_object), dtype=float)[0], np.nan)
    drawn, step = _draws(n, draws, seed), max(1, CHUNK // n)
    found = [statistic(drawn[i : i + step].astype(float) @ of_object) for i in range(0, draws, step)]
    with np.errstate(invalid="ignore"):
        return np.nanstd(np.concatenate(found), axis=0)


@lru_cache(maxsize=2)
def _draws(n: int, draws: int, seed: int) -> NDArray:
    """How often each of n objects is in each sample, shape ``(draws, n)``: the same samples for all statistics."""
    rng, even = np.random.default_rng(seed), np.full(n, 1 / n)
    return np.concatenate([rng.multinomial(n, even, size=1).astype(np.uint16) for _ in range(draws)])


def ratio(above: NDArray, below: NDArray) -> NDArray:
    """Quotient; NaN where the denominator is not positive."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) > 0)


def _of_cells(cells: NDArray, name: str) -> NDArray:
    return cells[..., SUMS.index(name)]


def widths(cells: NDArray) -> NDArray:
    """Width of the significance distribution from sums over cells, shape ``(..., 10)``; NaN without cells."""
    n = _of_cells(cells, "n")
    mean = ratio(_of_cells(cells, "s"), n)
    return np.sqrt(np.maximum(ratio(_of_cells(cells, "s2"), n) - mean**2, 0))


def expected_widths(cells: NDArray) -> NDArray:
    """Expected `widths` under Poisson statistics."""
    n = _of_cells(cells, "n")
    return np.sqrt(ratio(_of_cells(cells, "expected_s2"), n) - ratio(_of_cells(cells, "expected_s"), n) ** 2)


def summarise(validation: Validation, *, draws: int = DRAWS, seed: int = SEED) -> dict[str, Any]:
    """Summary of a validation, plain numbers for JSON.

    Parameters
    ----------
    validation
        The validation.
    draws, seed
        Of the bootstrap, see `bootstrap_error`.

    Returns
    -------
    summary
        ``ratio`` (predicted over observed, raw), of all and by ``bands`` and ``energies``; ``significance`` in each
        form (mean, width, tails, and their Poisson expectations); ``deviance`` over its expectation;
        ``bands`` with the residual slopes; ``scatter`` of ln(predicted / observed) from run to run.
    """
    runs = validation.runs
    group, how = runs["group"].values, {"draws": draws, "seed": seed}
    counts, predicted = runs["counts"].values, runs["predicted"].values
    pair = np.stack([predicted.sum(axis=1), counts.sum(axis=1)], axis=1)
    cells, moments = runs["cells"].values, runs["deviance"].values
    _, expectation, variance = moments.sum(axis=0)
    return {
        "name": validation.name,
        "left_out": validation.left_out,
        "alignment": validation.alignment,
        "runs": len(pair),
        "failed": len(validation.failed),
        "events": int(pair[:, 1].sum()),
        "ratio": _ratio_of(pair, group, how),
        "scatter": _scatter(*pair.T),
        "significance": {form: _significance(cells[:, i], group, how) for i, form in enumerate(FORMS)},
        "deviance": {**_ratio_of(moments, group, how), "statistics": float(np.sqrt(variance) / expectation)},
        "bands": _bands(validation, how),
        "energies": _energies(validation, how),
    }


def _with_error(sums: NDArray, group: NDArray, statistic: Statistic, how: Mapping[str, int]) -> dict[str, float]:
    """A statistic of sums over runs, and its bootstrap error."""
    value = float(np.asarray(statistic(sums.sum(axis=0)[None]))[0])
    return {"value": value, "error": float(bootstrap_error(sums, group, statistic, **how))}


def _scatter(predicted: NDArray, observed: NDArray) -> dict[str, float]:
    """Standard deviation of ln(predicted / observed), and its expectation from counting statistics."""
    there = (predicted > 0) & (observed > 0)
    log = np.log(predicted[there] / observed[there])
    return {"value": float(log.std()), "statistics": float(np.sqrt((1 / observed[there]).mean()))}


def _significance(cells: NDArray, group: NDArray, how: Mapping[str, int]) -> dict[str, Any]:
    """Mean, width and tails in one form."""
    total = cells.sum(axis=0)
    n = float(_of_cells(total, "n"))
    if not n:
        return {"cells": 0}

    def mean(sums: NDArray) -> NDArray:
        return ratio(_of_cells(sums, "s"), _of_cells(sums, "n"))

    found: dict[str, Any] = {
        "cells": int(n),
        "mean": {**_with_error(cells, group, mean, how), "expected": float(_of_cells(total, "expected_s")) / n},
        "width": _width(cells, group, how),
    }
    for k in (3, 5):
        value, expectation = int(_of_cells(total, f"over_{k}")), float(_of_cells(total, f"expected_{k}"))
        found[f"beyond_{k}"] = {"value": value, "expected": expectation}
    return found


def _width(cells: NDArray, group: NDArray, how: Mapping[str, int]) -> dict[str, float]:
    """Width of the significances in one form, with its error and expectation."""
    return {**_with_error(cells, group, widths, how), "expected": float(expected_widths(cells.sum(axis=0)))}


def _bands(validation: Validation, how: Mapping[str, int]) -> list[dict[str, Any]]:
    """By band: counts, predicted over observed, and the residual slopes."""
    runs, bands = validation.runs, []
    for i, (low, high) in enumerate(zip(runs["band_min"].values, runs["band_max"].values, strict=True)):
        chosen = runs["energy_band"].values == i
        pair = np.stack([runs[name].values[:, chosen].sum(axis=1) for name in ("predicted", "counts")], axis=1)
        bands.append({
            "energy": [float(low), float(high)],
            "events": int(pair[:, 1].sum()),
            "ratio": _ratio_of(pair, runs["group"].values, how),
            **{name: _slope(runs["slope"].values[:, i, j], runs["group"].values, how) for j, name in enumerate(AXES)},
        })  # fmt: skip
    return bands


def _ratio_of(pair: NDArray, group: NDArray, how: Mapping[str, int]) -> dict[str, float]:
    """Ratio of the sums of the first two columns, and its error."""
    return _with_error(pair, group, lambda total: ratio(total[:, 0], total[:, 1]), how)


def _slope(parts: NDArray, group: NDArray, how: Mapping[str, int]) -> dict[str, float]:
    """Slope of the residuals, relative to the prediction [1 / deg]; error over objects, and of statistics only."""
    weight = parts[:, 1].sum()
    statistics = float(1 / np.sqrt(weight)) if weight > 0 else float("nan")
    return {**_ratio_of(parts, group, how), "statistics": statistics}


def _energies(validation: Validation, how: Mapping[str, int]) -> list[dict[str, Any]]:
    """Predicted over observed of each energy that has counts."""
    runs, energies = validation.runs, []
    for k in np.flatnonzero(runs["counts"].values.sum(axis=0)).tolist():
        pair = np.stack([runs[name].values[:, k] for name in ("predicted", "counts")], axis=1)
        limits = [float(runs[name].values[k]) for name in ("energy_min", "energy_max")]
        ratios = _ratio_of(pair, runs["group"].values, how)
        energies.append({"energy": limits, "events": int(pair[:, 1].sum()), "ratio": ratios})
    return energies


def compare(
    validations: Mapping[str, Validation], reference: str, *, draws: int = DRAWS, seed: int = SEED
) -> list[dict[str, Any]]:
    """Paired differences of several validations on the runs that they have in common.

    Parameters
    ----------
    validations
        By name; with the same bins, threshold and exclusion.
    reference
        Name of the one with which the others are compared.
    draws, seed
        Of the bootstrap over objects, the same draws for all.

    Returns
    -------
    rows
        For each: ``name``, ``runs``, ``events``; for each form the difference of the log-likelihood from the
        reference in nats per event with its error (``{"value", "error"}``), and ``width`` of the significances in
        each form with its error and expectation; ``ratio``, predicted over observed, and ``scatter`` of its
        logarithm.

    Raises
    ------
    ValueError
        If they cannot be compared, or there is no such reference.
    """
    if reference not in validations:
        raise ValueError(f"reference {reference!r} is none of {', '.join(map(repr, validations))}")
    numbers, how = common_runs(list(validations.values())), {"draws": draws, "seed": seed}
    runs = {name: validation.runs.sel(obs_id=numbers) for name, validation in validations.items()}
    group = runs[reference]["group"].values
    events = runs[reference]["counts"].values.sum(axis=1)
    rows = []
    for name, part in runs.items():
        difference = part["loglike"].values - runs[reference]["loglike"].values
        cells = part["cells"].values
        pair = np.stack([part["predicted"].values.sum(axis=1), events], axis=1)
        row: dict[str, Any] = {"name": name, "runs": numbers.size, "events": int(events.sum())}
        for i, form in enumerate(FORMS):
            row[form] = _ratio_of(np.stack([difference[:, i], events], axis=1), group, how)
        row["width"] = {form: _width(cells[:, i], group, how) for i, form in enumerate(FORMS)}
        rows.append({**row, "ratio": _ratio_of(pair, group, how), "scatter": _scatter(*pair.T)})
    return rows
