"""The page of a validation: one file with all that it needs, for a browser."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dask_bkg import __version__
from dask_bkg.report import validation_pictures as pictures
from dask_bkg.validation.flags import WRONG, flag_words, worst_first
from dask_bkg.validation.results import Validation

WORST = 40
"""Runs that the page has the numbers of."""

STYLE = """
:root { --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --accent: #1b75bc; --warn: #b3470b; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 28px 24px 60px; color: var(--ink); background: #fff;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 19px; margin: 38px 0 8px; }
h3 { font-size: 15px; margin: 0; } p { margin: 4px 0 12px; max-width: 96ch; }
.soft { color: var(--soft); } .warn { color: var(--warn); font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px; margin: 18px 0 6px; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; }
.card b { display: block; font-size: 21px; font-weight: 600; white-space: nowrap; }
.card i { font-style: normal; font-size: 14px; font-weight: 400; color: var(--soft); }
.card span { display: block; color: var(--soft); font-size: 13px; line-height: 1.35; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(430px, 1fr)); gap: 22px; }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: 13px; margin-top: 4px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; margin: 6px 0 10px; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
th:first-child, td:first-child, .named th:nth-child(2), .named td:nth-child(2) { text-align: left; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; } section.run { border-top: 1px solid var(--line); padding: 14px 0 4px; }
section.run:target { background: #f3f8fd; } footer { margin-top: 40px; color: var(--soft); font-size: 13px; }
"""


def make_page(
    validation: Validation, told: Sequence[Mapping[str, Any]], columns: Mapping[str, NDArray], rows: Sequence[Mapping]
) -> str:
    """The page as HTML.

    Parameters
    ----------
    validation
        The validation; with what it is compared with, if there is anything.
    told
        Summaries of it and of what it is compared with (`dask_bkg.validation.summarise`).
    columns
        Its runs one by one (`dask_bkg.validation.run_columns`).
    rows
        The comparison (`dask_bkg.validation.compare`); empty if there is none.
    """
    title = "Validation of a background model"
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="soft">{escape(validation.name)}{_against(validation)}</p>',
        _warning(validation),
        _cards(told[0], columns),
        _comparison(rows),
        _pictures(validation, told, columns),
        _bands(told[0]),
        _worst(validation, columns),
        _failed(validation.failed),
        f"<footer>dask_bkg {escape(__version__)}. Errors are standard deviations of a bootstrap over targets; "
        "&ldquo;norm&rdquo; is the prediction with one factor for each run. All runs are in validation.ecsv, all "
        "numbers in validation.json.</footer>",
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _against(validation: Validation) -> str:
    other = validation.against
    return "" if other is None else f" &nbsp;against&nbsp; {escape(other.name)}"


def _warning(validation: Validation) -> str:
    if validation.held_out is False:
        return (
            '<p class="warn">Not held out: the counts of each run are in its own background '
            "(io.from_run or model.own), which is no validation.</p>"
        )
    how = "the run itself" if validation.left_out == "the run" else escape(validation.left_out)
    return (
        f"<p>Every background was made without {how}, and compared with the counts of the run outside of "
        "the exclusion, above its energy threshold.</p>"
    )


def _cards(told: Mapping[str, Any], columns: Mapping[str, NDArray]) -> str:
    width = told["significance"]["norm"].get("width")
    scatter = {name: 100 * value for name, value in told["scatter"].items()}
    flagged = int(((columns["flag"] & WRONG) > 0).sum())
    cards = [
        (f"{told['runs']}", f"runs, {told['events']:,} events".replace(",", "&#8239;")),
        (_large(told["ratio"]), "predicted / observed"),
        (f"{scatter['value']:.1f} %", f"scatter from run to run; statistics {scatter['statistics']:.1f} %"),
        (_large(width), f"width of significances; perfect {width['expected'] if width else math.nan:.3f}"),
        (_large(told["deviance"]), "deviance / expectation"),
        (f"{flagged}", "runs look wrong"),
    ]  # fmt: skip
    inner = "".join(f'<div class="card"><b>{value}</b><span>{label}</span></div>' for value, label in cards)
    return f'<div class="cards">{inner}</div>'


def _large(pair: Mapping[str, float] | None) -> str:
    """A value with its error, the error smaller."""
    value, *error = _number(pair, 3).split("&thinsp;&plusmn;&thinsp;")
    return f"{value} <i>&plusmn; {error[0]}</i>" if error else value


def _number(pair: Mapping[str, float] | None, digits: int, factor: float = 1.0, sign: bool = False) -> str:
    """A value with its error."""
    if pair is None or not math.isfinite(pair["value"]):
        return "-"
    value = f"{factor * pair['value']:{'+' if sign else ''}.{digits}f}".replace("-", "&minus;")
    error = pair.get("error", math.nan)
    return value if not math.isfinite(error) else f"{value}&thinsp;&plusmn;&thinsp;{factor * error:.{digits}f}"


def _comparison(rows: Sequence[Mapping]) -> str:
    if not rows:
        return ""
    header = ["", "raw", "norm", "enorm", "width (norm)", "perfect", "predicted / observed", "scatter"]
    body = []
    for i, row in enumerate(rows):
        values = [_number(row[form], 2, 1e3, sign=True) if i else "0" for form in ("raw", "norm", "enorm")]
        width = row["width"]["norm"]
        cells = [escape(row["name"]), *values, _number(width, 3), f"{width['expected']:.3f}"]
        cells += [_number(row["ratio"], 3), f"{100 * row['scatter']['value']:.1f} %"]
        body.append(cells)
    return (
        "<h2>Comparison</h2><p>Differences of the log-likelihood in 10<sup>&minus;3</sup> nats an event on "
        f"{rows[0]['runs']} runs; more is better. raw: as predicted; norm: one factor for each run; enorm: one for "
        "each run and energy, the shape in the field alone.</p>" + _table(header, body)
    )


def _table(header: Iterable[str], body: Iterable[Sequence[str]], kind: str = "") -> str:
    head = "".join(f"<th>{cell}</th>" for cell in header)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body)
    rows = f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{rows}</table></div>'


def _image(figure: Figure, caption: str) -> str:
    """A picture within the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    data = base64.b64encode(buffer.getvalue()).decode()
    alt = escape(caption.split(".")[0], quote=True)
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'


def _pictures(validation: Validation, told: Sequence[Mapping[str, Any]], columns: Mapping[str, NDArray]) -> str:
    every = [validation, *([validation.against] if validation.against else [])]
    names = [one.name for one in every]
    if len(names) > 1:
        names = ["this", "against"]
    off_max = float(validation.runs["ring_max"].values[-1])
    fields = [
        _image(
            pictures.draw_fields(one.sums, one.alignment, off_max),
            f"Residuals of {escape(one.name)}: observed less predicted (norm), summed over all runs.",
        )
        for one in every
    ]
    pair = [
        _image(
            pictures.draw_significances([one.sums for one in every], names, told),
            "Significances of cells of the field, by run and energy band (norm).",
        ),
        _image(
            pictures.draw_profiles(validation.runs, names, [one.runs for one in every[1:]]),
            "Radial profile: what is seen of what is predicted.",
        ),
        _image(
            pictures.draw_slopes(told, names),
            "Slope of the residuals towards the zenith, and to the side of it. 0 is a field that leans as predicted.",
        ),
        _image(pictures.draw_energies(told, names), "Predicted over observed counts by energy."),
    ]
    runs = _image(pictures.draw_runs(columns), "Predicted over observed counts of each run (raw).")
    return (
        f'<h2>Over all runs</h2><div class="two">{"".join(pair)}</div><h2>Residual fields</h2>{"".join(fields)}'
        + (f"<h2>Runs</h2>{runs}")
    )


def _bands(told: Mapping[str, Any]) -> str:
    header = ["band", "events", "predicted / observed", "zenithward [% / deg]", "sideward [% / deg]"]
    body = [
        [
            f"{band['energy'][0]:g} to {band['energy'][1]:g} TeV",
            str(band["events"]),
            _number(band["ratio"], 3),
            _number(band["zenithward"], 2, 100, sign=True),
            _number(band["sideward"], 2, 100, sign=True),
        ]
        for band in told["bands"]
    ]
    return "<h2>By energy band</h2>" + _table(header, body)


def _worst(validation: Validation, columns: Mapping[str, NDArray]) -> str:
    """Runs that look wrong first, with the numbers of each below."""
    order = worst_first(columns)[:WORST].tolist()
    header = [
        "run",
        "target",
        "events",
        "predicted / observed",
        "rate pull",
        "width",
        "shape pull",
        "hottest spot",
        "flags",
    ]
    body = []
    for i in order:
        number, events = int(columns["obs_id"][i]), str(int(columns["events"][i]))
        body.append([
            f'<a href="#run-{number}">{number}</a>', escape(str(columns["object"][i])), events,
            _number({"value": columns["ratio"][i], "error": columns["ratio_error"][i]}, 3),
            f"{columns['rate_pull'][i]:+.1f}", f"{columns['width'][i]:.2f}", f"{columns['shape_pull'][i]:+.1f}",
            f"{columns['hottest'][i]:.1f}",
            f'<span class="warn">{flag_words(int(columns["flag"][i]))}</span>',
        ])  # fmt: skip
    details = "".join(_run(validation, columns, i) for i in order)
    more = columns["obs_id"].size - len(order)
    note = f" The {more} other runs are in validation.ecsv." if more else ""
    return (
        "<h2>Worst runs first</h2><p>rate pull: distance of predicted / observed from that of the other runs; shape "
        "pull: of the residuals in the field; hottest: significance of the largest excess. Bad weather, a wrong "
        f"pointing, a source that is not excluded look like that.{note}</p>{_table(header, body, 'named')}"
        f"<h2>Their numbers</h2>{details}"
    )


def _run(validation: Validation, columns: Mapping[str, NDArray], i: int) -> str:
    """The numbers of one run."""
    number = int(columns["obs_id"][i])
    runs = validation.runs.isel(obs_id=i)
    counts, predicted = runs["profile"].values.sum(axis=2)
    raw = [
        [part[runs["energy_band"].values == band].sum() for part in (runs["predicted"].values, runs["counts"].values)]
        for band in range(len(counts))
    ]
    header = ["band", "observed", "predicted (raw)", "ratio", "predicted (norm)", "standard deviations (norm)"]
    body = [
        [
            f"{low:g} to {high:g} TeV", f"{n:.0f}", f"{pair[0]:.1f}", f"{pair[0] / pair[1]:.3f}" if pair[1] else "-",
            f"{mu:.1f}", f"{(n - mu) / np.sqrt(mu):+.1f}" if mu > 0 else "-",
        ]
        for low, high, n, mu, pair in zip(
            runs["band_min"].values, runs["band_max"].values, counts, predicted, raw, strict=True
        )
    ]  # fmt: skip
    facts = [
        f"zenith angle {columns['zenith'][i]:.1f} deg",
        f"threshold {columns['threshold'][i]:.3g} TeV",
        f"MJD {columns['time'][i]:.2f}",
    ]
    if np.isfinite(columns["hot_lon"][i]):
        place = f"fov_lon {columns['hot_lon'][i]:+.1f}, fov_lat {columns['hot_lat'][i]:+.1f} deg"
        facts.append(f"largest excess {columns['hottest'][i]:.1f} standard deviations at {place}")
    if columns["n_runs"][i]:
        facts.append(f"background of {int(columns['n_runs'][i])} runs, {columns['hours'][i]:.1f} h")
    words = flag_words(int(columns["flag"][i]))
    warn = f' <span class="warn">{words}</span>' if words else ""
    return (
        f'<section class="run" id="run-{number}"><h3>Run {number}, {escape(str(columns["object"][i]) or "no target")}'
        f'{warn}</h3><p class="soft">{escape("; ".join(facts))}</p>{_table(header, body)}</section>'
    )


def _failed(failed: Mapping[int, str]) -> str:
    if not failed:
        return ""
    shown = list(failed.values())[:WORST]
    lines = "".join(f"<li>{escape(reason)}</li>" for reason in shown)
    more = f"<p>... and {len(failed) - len(shown)} more</p>" if len(failed) > len(shown) else ""
    return f"<h2>Not validated</h2><p>{len(failed)} runs:</p><ul>{lines}</ul>{more}"
