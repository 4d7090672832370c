"""What is in a store, in words."""

from __future__ import annotations

import datetime
import os
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dask_bkg.store import layout
from dask_bkg.store.store import RunStore

FIRST_REASONS = 5
MJD_ZERO = datetime.datetime(1858, 11, 17)
UNITS = ("B", "kB", "MB", "GB", "TB")


def describe(path: str | os.PathLike[str]) -> str:
    """What ``dask-bkg info`` prints of a store: runs, hours, dates, axes, exclusion, size.

    Parameters
    ----------
    path
        The store.

    Raises
    ------
    ArchiveError
        If there is none.
    """
    store = RunStore.open(path)
    attributes, table = layout.attributes_of(store.path), store.table()
    lines = [
        ("store", f"{store.path} (layout {attributes['dask_bkg_layout']}, {attributes['program']})"),
        ("written", f"{attributes['written']}, made {attributes['made']}"),
        ("size", _size_text(store.path)),
        *_run_lines(store, table),
        ("fine axes", layout.axes_text(store.fine)),
        *((name, _view_text(store, name)) for name in store.views if name),
        ("exclusion", attributes["exclusion"] or "none yet"),
        *((f"  {name}", sha) for name, sha in attributes["catalogs"].items()),
        *(("  " + sha, text) for sha, text in _exclusions(store, table, attributes["exclusions"])),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines)


def _run_lines(store: RunStore, table: dict[str, NDArray]) -> list[tuple[str, str]]:
    usable, failed = store.usable(), table["error"] != ""
    n, void = int(usable.sum()), int((~usable & ~failed).sum())
    lines = [("runs", f"{n} usable, {int(failed.sum())} failed" + (f", {void} to be read again" if void else ""))]
    lines += [("  failed", str(reason)) for reason in table["error"][failed][:FIRST_REASONS]]
    if not n:
        return lines
    chosen = {name: column[usable] for name, column in table.items()}
    hours, livetime = chosen["ontime"].sum() / 3600, np.nansum(chosen["livetime"]) / 3600
    return [
        *lines,
        ("hours", f"{hours:.1f} h ontime, {livetime:.1f} h livetime"),
        ("events", f"{int(np.nansum(chosen['n_events']))}"),
        ("run numbers", f"{chosen['obs_id'].min()} to {chosen['obs_id'].max()}"),
        ("dates", _range(chosen["time"], _date)),
        ("zenith", _range(chosen["zenith"], lambda angle: f"{angle:.1f} deg")),
    ]


def _view_text(store: RunStore, name: str) -> str:
    """A further view; its directory in the store may be removed when it is needed no more."""
    view, n_runs = store.views[name], int(store.usable(name).sum())
    about = f"{layout.axes_text(view)}; {view.method}, {view.reach}"
    return f"{about}; {n_runs} runs; {_size_text(layout.place_of(store.path, name))}"


def _exclusions(store: RunStore, table: dict[str, NDArray], used: dict[str, str]) -> list[tuple[str, str]]:
    """How many runs are of which exclusion; runs that none touches count with the one they were last seen with."""
    counts = Counter(table["whole_exclusion"][store.usable()].tolist())
    return [(sha, f"{n} runs, used {used.get(sha, 'at a time not known')}") for sha, n in counts.most_common()]


def _range(values: NDArray, text) -> str:
    values = values[np.isfinite(values)]
    return f"{text(values.min())} to {text(values.max())}" if values.size else "not known"


def _date(mjd: float) -> str:
    return (MJD_ZERO + datetime.timedelta(days=float(mjd))).strftime("%Y-%m-%d")


def _size_text(path: Path) -> str:
    sizes = [os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(path) for name in names]
    power = min(int(np.log(max(sum(sizes), 1)) / np.log(1000)), len(UNITS) - 1)
    return f"{sum(sizes) / 1000**power:.3g} {UNITS[power]} in {len(sizes)} files"
