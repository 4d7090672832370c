"""The files of a validation: numbers, a table of the runs, a page; and the table that a terminal shows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from dask_bkg.files import atomic_write
from dask_bkg.report.tables import format_table
from dask_bkg.report.validation_page import make_page
from dask_bkg.validation.flags import WRONG, flag_words, run_columns, worst_first
from dask_bkg.validation.results import Validation
from dask_bkg.validation.summary import compare, summarise

UNITS = {"zenith": "deg", "time": "d", "threshold": "TeV", "hours": "h"}

SHOWN = 5
"""Worst runs that a terminal shows."""


def write_validation(validation: Validation, directory: Path) -> str:
    """Write ``validation.json``, ``validation.ecsv`` and ``validation.html``.

    Parameters
    ----------
    validation
        The validation.
    directory
        Where they go; made if it is not there.

    Returns
    -------
    text
        What there is to say of it, for a terminal.
    """
    every = [validation, *([validation.against] if validation.against else [])]
    summaries, columns = [summarise(one) for one in every], run_columns(validation)
    rows = compare({one.name: one for one in every}, validation.name) if len(every) > 1 else []
    directory.mkdir(parents=True, exist_ok=True)
    numbers = {
        "validation": summaries[0],
        "against": summaries[1] if len(summaries) > 1 else None,
        "comparison": rows,
    }
    flagged = {int(n): flag_words(int(f)) for n, f in zip(columns["obs_id"], columns["flag"], strict=True) if f}
    content = {**numbers, "flagged": flagged, "failed": validation.failed}
    text = json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"
    table, page = _table(columns), make_page(validation, summaries, columns, rows)
    atomic_write(directory / "validation.json", lambda path: path.write_text(text))
    atomic_write(directory / "validation.ecsv", lambda path: table.write(path, format="ascii.ecsv", overwrite=True))
    atomic_write(directory / "validation.html", lambda path: path.write_text(page, encoding="utf-8"))
    return describe(validation, summaries, columns, rows)


def _finite(value: Any) -> Any:
    """The same with None for what is no number, which JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(columns: Mapping[str, np.ndarray]) -> Table:
    table = Table({name: np.asarray(column) for name, column in columns.items() if name != "flag"})
    table["flags"] = [flag_words(int(flag)) for flag in columns["flag"]]
    table["object"] = [str(name) for name in columns["object"]]
    for name, unit in UNITS.items():
        table[name].unit = unit
    return table


def describe(validation: Validation, told: list, columns: Mapping[str, np.ndarray], rows: list) -> str:
    """The validation in a few lines."""
    first, flagged = told[0], int(((columns["flag"] & WRONG) > 0).sum())
    head = [
        f"{first['runs']} runs, {first['events']} events; backgrounds made without {_without(validation)}",
        f"predicted / observed {_pm(first['ratio'], 3)}; from run to run {first['scatter']['value']:.1%} (statistics "
        f"{first['scatter']['statistics']:.1%})",
    ]
    band_rows = [
        [
            f"{band['energy'][0]:g}-{band['energy'][1]:g}",
            band["events"],
            _pm(band["ratio"], 3),
            _pm(band["zenithward"], 2, 100),
            _pm(band["sideward"], 2, 100),
        ]
        for band in first["bands"]
    ]
    header = ["band [TeV]", "events", "predicted/observed", "zenithward [%/deg]", "sideward [%/deg]"]
    parts = ["\n".join(head), format_table(header, band_rows), _models(first, rows), _worst(columns, flagged)]
    return "\n\n".join(part for part in parts if part)


def _without(validation: Validation) -> str:
    if validation.held_out is False:
        return "nothing left out: NOT HELD OUT (io.from_run or model.own), which is no validation"
    return validation.left_out


def _models(first: Mapping[str, Any], rows: list) -> str:
    """Widths; and differences, where there is something to compare with."""
    if not rows:
        header = ["form", "width", "perfect", "mean", "perfect", "> 3", "expected"]
        cells = []
        for form, told in first["significance"].items():
            if told["cells"]:
                parts = [[_pm(told[key], 3), f"{told[key]['expected']:.3f}"] for key in ("width", "mean")]
                tail = told["beyond_3"]
                cells.append([form, *parts[0], *parts[1], tail["value"], f"{tail['expected']:.1f}"])
        return "significances of cells\n" + format_table(header, cells) if cells else ""
    header = ["1e-3 nats an event", "raw", "norm", "enorm", "width (norm)", "perfect"]
    cells = [
        [
            row["name"],
            *(_pm(row[form], 2, 1e3) for form in ("raw", "norm", "enorm")),
            _pm(row["width"]["norm"], 3),
            f"{row['width']['norm']['expected']:.3f}",
        ]
        for row in rows
    ]
    return format_table(header, cells)


def _worst(columns: Mapping[str, np.ndarray], flagged: int) -> str:
    order = worst_first(columns)[: max(SHOWN, min(flagged, 20))].tolist()
    header = ["run", "events", "predicted/observed", "rate pull", "shape pull", "hottest", "flags"]
    cells = [
        [
            int(columns["obs_id"][i]),
            int(columns["events"][i]),
            f"{columns['ratio'][i]:.3f}",
            f"{columns['rate_pull'][i]:+.1f}",
            f"{columns['shape_pull'][i]:+.1f}",
            f"{columns['hottest'][i]:.1f}",
            flag_words(int(columns["flag"][i])),
        ]
        for i in order
    ]
    return f"worst runs first, {flagged} look wrong\n" + format_table(header, cells)


def _pm(pair: Mapping[str, float], digits: int, factor: float = 1.0) -> str:
    return f"{factor * pair['value']:.{digits}f} +- {factor * pair['error']:.{digits}f}"
