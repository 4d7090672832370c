"""Tables as text, and the list of the runs that a job could not use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from astropy.table import Table

from dask_bkg.files import atomic_write
from dask_bkg.terminal import kind_of, one_line

FAILURES = "failures.ecsv"


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as text, numbers to the right.

    Examples
    --------
    >>> print(format_table(["run", "hours"], [[64001, 1.5], [7, "-"]]))
      run  hours
    -----  -----
    64001   1.50
        7      -
    """
    cells = [[f"{c:.2f}" if isinstance(c, float) else one_line(c) for c in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    lines = [list(header), ["-" * w for w in widths], *cells]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def summary_rows(results: Iterable) -> list[list[object]]:
    """Rows of the table at the end of a job: run, status, runs and hours used, events, output file."""
    return [[r.obs_id, r.status, r.n_runs, float(r.hours), r.n_events, r.output or "-"] for r in results]


SUMMARY_HEADER = ["run", "status", "runs used", "hours", "events", "output file"]


def write_failures(directory: Path, failed: Mapping[int, str]) -> Path | None:
    """List the failures of a job in `FAILURES`: ``OBS_ID``, ``KIND``, ``REASON``; without one, remove the last job's.

    Parameters
    ----------
    directory
        Where the file lies.
    failed
        Reasons, ``{obs_id: reason}``; control characters in them are written as Python does.

    Returns
    -------
    path
        The file; None if there is no failure.
    """
    path = directory / FAILURES
    if not failed:
        path.unlink(missing_ok=True)
        return None
    runs = np.array(list(failed), dtype=np.int64)
    reasons = [one_line(reason) for reason in failed.values()]
    table = Table([runs, [kind_of(reason) for reason in reasons], reasons], names=("OBS_ID", "KIND", "REASON"))
    atomic_write(path, lambda temporary: table.write(temporary, format="ascii.ecsv", overwrite=True))
    return path
