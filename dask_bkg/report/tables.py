"""Tables as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


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
    cells = [[f"{c:.2f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    lines = [list(header), ["-" * w for w in widths], *cells]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def summary_rows(results: Iterable) -> list[list[object]]:
    """Rows of the table at the end of a job: run, status, runs and hours used, events, output file."""
    return [[r.obs_id, r.status, r.n_runs, float(r.hours), r.n_events, r.output or "-"] for r in results]


SUMMARY_HEADER = ["run", "status", "runs used", "hours", "events", "output file"]
