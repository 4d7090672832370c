"""Events, good time intervals, observing conditions and energy threshold of one DL3 file.

Plain columns through astropy, without memory maps, files closed at once: an archive of 20,000 runs goes through here.
What GADF leaves optional is derived where it can be; the rest is NaN.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from dask_bkg.errors import RunError

SECONDS_PER_DAY = 86400.0
TEV = {"TEV": 1.0, "GEV": 1e-3, "MEV": 1e-6}
WORTH_A_NOTE = 0.01
"""Share of events outside of the good time intervals from which the user is told."""

THRESHOLD_OFFSET = 0.5
THRESHOLD_FRACTION = 0.1


class RunFile(NamedTuple):
    """Where the events and good time intervals of a run are; paths and names travel to workers, no open files.

    Attributes
    ----------
    obs_id
        Run number.
    path
        File of the events.
    events_hdu
        Name of their HDU; empty: the first that says it is one.
    gti_path, gti_hdu
        The same for the good time intervals; an empty path is the file of the events.
    """

    obs_id: int
    path: str
    events_hdu: str = ""
    gti_path: str = ""
    gti_hdu: str = ""


class RunEvents(NamedTuple):
    """What the reduction needs of one run.

    Attributes
    ----------
    ra, dec, energy
        Events with a finite position and a positive energy: [deg], [deg], [TeV], shape ``(events,)``.
    numbers
        Per-run numbers, see `dask_bkg.schema.RUN_NUMBERS`.
    object
        Name of the target.
    note
        What was remarkable, empty if nothing was.
    """

    ra: NDArray
    dec: NDArray
    energy: NDArray
    numbers: dict[str, float]
    object: str
    note: str


@contextmanager
def open_fits(path: str, obs_id: int) -> Iterator[fits.HDUList]:
    """A FITS file (gzipped or not), with `RunError` for everything that can be wrong with it."""
    try:
        with fits.open(path, memmap=False) as hdus:
            yield hdus
    except FileNotFoundError:
        raise RunError(
            f"run {obs_id}: the index names {path}, which does not exist: restore it or repair the index"
        ) from None
    except (OSError, EOFError, zlib.error, TypeError, IndexError, ValueError, fits.VerifyError) as error:
        raise RunError(f"run {obs_id}: {path} is not a whole FITS file ({error}): copy it again") from error


def find_hdu(hdus: fits.HDUList, name: str, hdu_class: str, obs_id: int, path: str) -> fits.BinTableHDU:
    """The HDU of a name, or the first of a class (``EVENTS``, ``GTI``, ``EFF_AREA``)."""
    for hdu in hdus:
        header = hdu.header
        extname = str(header.get("EXTNAME", "")).strip().upper()
        classes = (header.get("HDUCLAS1"), header.get("HDUCLAS2"), extname)
        if (extname == name.strip().upper()) if name else (hdu_class in classes):
            return hdu
    raise RunError(
        f"run {obs_id}: {path} has no {name or hdu_class} HDU (it has {', '.join(h.name for h in hdus)}); "
        "a DL3 file needs EVENTS and GTI: if it was cut short or damaged, copy it again"
    )


def read_run(run: RunFile, cut_time: bool = True) -> RunEvents:
    """Events, ontime and observing conditions of a run.

    Parameters
    ----------
    run
        Where they are.
    cut_time
        Whether events outside of the good time intervals are left out, whose exposure is not counted either.

    Raises
    ------
    RunError
        If the file is missing or broken, a column or the pointing is missing, there is no event or no good time.
    """
    with open_fits(run.path, run.obs_id) as hdus:
        events = find_hdu(hdus, run.events_hdu, "EVENTS", run.obs_id, run.path)
        header = events.header
        ra, dec, energy, time = _event_columns(events, run)
        if run.gti_path in ("", run.path):
            gti = _good_time(find_hdu(hdus, run.gti_hdu, "GTI", run.obs_id, run.path), run)
    if run.gti_path not in ("", run.path):
        with open_fits(run.gti_path, run.obs_id) as hdus:
            gti = _good_time(find_hdu(hdus, run.gti_hdu, "GTI", run.obs_id, run.gti_path), run)
    whole = np.isfinite(ra) & np.isfinite(dec) & np.isfinite(energy) & (energy > 0)
    good = whole & _inside(gti, header, time) if cut_time and time is not None else whole
    if not good.any():
        wrong = "is within a good time interval" if whole.any() else "has a position and an energy > 0"
        raise RunError(f"run {run.obs_id}: none of the {good.size} events of {run.path} {wrong}")
    if not good.all():
        ra, dec, energy = ra[good], dec[good], energy[good]
    numbers = {**conditions(header), **_times(gti, header), "n_events": float(good.sum())}
    if not (np.isfinite(numbers["ra_pnt"]) and abs(numbers["dec_pnt"]) <= 90):
        raise RunError(f"run {run.obs_id}: no pointing (RA_PNT, DEC_PNT) in the EVENTS header of {run.path}")
    note = _left_out(good.size, int((~whole).sum()), int((whole & ~good).sum()))
    return RunEvents(ra, dec, energy, numbers, str(header.get("OBJECT", "")).strip(), note)


def _left_out(n_events: int, broken: int, untimely: int) -> str:
    """What to say of events that were not used, empty if all were."""
    # intervals in whole seconds cut an event or two off every run: not worth a word
    untimely = untimely if untimely > WORTH_A_NOTE * n_events else 0
    reasons = ((broken, "without a position or an energy > 0"), (untimely, "outside of the good time intervals"))
    return "; ".join(f"{n} of {n_events} events {why} left out" for n, why in reasons if n)


def _event_columns(hdu: fits.BinTableHDU, run: RunFile) -> tuple[NDArray, NDArray, NDArray, NDArray | None]:
    """RA, Dec [deg], energy [TeV] and, where it is there, mission time [s] of the events."""
    names = [c.upper() for c in hdu.columns.names] if hasattr(hdu, "columns") else []
    missing = [c for c in ("RA", "DEC", "ENERGY") if c not in names]
    if missing:
        raise RunError(
            f"run {run.obs_id}: EVENTS of {run.path} has no column {', '.join(missing)} (it has {', '.join(names)})"
        )
    data = hdu.data
    if len(data) == 0:
        raise RunError(f"run {run.obs_id}: EVENTS of {run.path} has no rows")
    unit = str(hdu.columns["ENERGY"].unit or hdu.header.get("EUNIT", "TeV")).strip()
    if unit.upper() not in TEV:
        raise RunError(f"run {run.obs_id}: the unit of ENERGY in {run.path} is {unit!r}; accepted are TeV, GeV, MeV")
    ra, dec, energy = (np.asarray(data[c], dtype=float) for c in ("RA", "DEC", "ENERGY"))
    time = np.asarray(data["TIME"], dtype=float) if "TIME" in names else None
    return ra, dec, energy * TEV[unit.upper()], time


def _good_time(hdu: fits.BinTableHDU, run: RunFile) -> tuple[NDArray, NDArray, fits.Header]:
    data = hdu.data
    names = [n.upper() for n in getattr(data, "names", ())]
    if data is None or len(data) == 0 or "START" not in names or "STOP" not in names:
        raise RunError(f"run {run.obs_id}: GTI of {run.path} has no good time interval (columns START, STOP)")
    start, stop = (np.asarray(data[c], dtype=float) for c in ("START", "STOP"))
    if not np.isfinite(stop - start).all() or (stop < start).any() or not (stop - start).sum() > 0:
        raise RunError(f"run {run.obs_id}: the good time intervals of {run.path} add up to no time")
    return *_merged(start, stop), hdu.header


def _merged(start: NDArray, stop: NDArray) -> tuple[NDArray, NDArray]:
    """Intervals in order, overlapping ones joined: time that is listed twice is exposed once."""
    order = np.argsort(start)
    start, stop = start[order], np.maximum.accumulate(stop[order])
    first = np.append(True, start[1:] > stop[:-1])
    return start[first], np.append(stop[:-1][first[1:]], stop[-1])


def _inside(gti: tuple[NDArray, NDArray, fits.Header], header: fits.Header, time: NDArray) -> NDArray:
    """Which events lie in a good time interval; both times count from a reference that their headers give."""
    start, stop, gti_header = gti
    shift = (_mjd(header, 0.0) - _mjd(gti_header, 0.0)) * SECONDS_PER_DAY
    time = time + shift if np.isfinite(shift) else time
    index = np.searchsorted(start, time, side="right") - 1
    return (index >= 0) & (time <= stop[index])


def _times(gti: tuple[NDArray, NDArray, fits.Header], header: fits.Header) -> dict[str, float]:
    """Ontime and livetime [s], and the middle of the run [MJD], where the good time intervals know better."""
    start, stop, gti_header = gti
    ontime = float((stop - start).sum())
    livetime = conditions(header)["livetime"]
    if not 0 < livetime <= ontime * 1.001:
        # some archives cut the intervals and leave the header: the dead-time fraction still holds
        deadc = number(header, "DEADC")
        livetime = ontime * deadc if 0 < deadc <= 1 else ontime
    times = {"ontime": ontime, "livetime": livetime}
    reference = gti_header if "MJDREFI" in gti_header else header
    time = _mjd(reference, (start[0] + stop[-1]) / 2)
    return {**times, "time": time} if np.isfinite(time) else times


def conditions(header: Mapping[str, Any], reference: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Pointing, observing conditions and times from an EVENTS header or a row of an obs-index.

    Parameters
    ----------
    header
        Cards, or columns of a row.
    reference
        Cards that hold MJDREFI and MJDREFF, if those are not in ``header``.

    Returns
    -------
    numbers
        ``ra_pnt``, ``dec_pnt``, ``zenith``, ``azimuth`` [deg], ``nsb``, ``n_tels``, ``time`` [MJD, in the time
        system of the archive], ``ontime`` and ``livetime`` [s]; NaN where nothing says.

    Examples
    --------
    >>> conditions({"ALT_PNT": 60.0, "TELLIST": "1,2,4"})["zenith"]
    30.0
    """
    zenith = 90.0 - number(header, "ALT_PNT")
    n_tels = number(header, "N_TELS")
    telescopes = str(header.get("TELLIST") or "").replace("-", ",").split(",")
    start, stop = number(header, "TSTART"), number(header, "TSTOP")
    time = _mjd(reference or header, (start + stop) / 2)
    return {
        "ra_pnt": number(header, "RA_PNT"),
        "dec_pnt": number(header, "DEC_PNT"),
        "zenith": zenith if np.isfinite(zenith) else number(header, "ZEN_PNT"),
        "azimuth": number(header, "AZ_PNT"),
        "nsb": number(header, "NSBLEVEL"),
        "n_tels": n_tels if np.isfinite(n_tels) or telescopes == [""] else float(len(telescopes)),
        "time": time if np.isfinite(time) else date_mjd(header),
        "ontime": number(header, "ONTIME"),
        "livetime": number(header, "LIVETIME", number(header, "ONTIME") * number(header, "DEADC")),
    }


def read_conditions(run: RunFile) -> dict[str, float]:
    """`conditions` from the EVENTS header of a run; all NaN if it cannot be read (the reduction says why)."""
    try:
        with open_fits(run.path, run.obs_id) as hdus:
            return conditions(find_hdu(hdus, run.events_hdu, "EVENTS", run.obs_id, run.path).header)
    except RunError:
        return conditions({})


def _mjd(reference: Mapping[str, Any], seconds: float) -> float:
    """Mission time [s] as MJD; NaN without a reference."""
    return number(reference, "MJDREFI") + number(reference, "MJDREFF", 0.0) + seconds / SECONDS_PER_DAY


def number(header: Mapping[str, Any], key: str, default: float = np.nan) -> float:
    """A card as a number; the default where it is missing, masked or no number."""
    value = header.get(key)
    try:
        return default if value is None or value is np.ma.masked else float(value)
    except (TypeError, ValueError):
        return default


def date_mjd(header: Mapping[str, Any]) -> float:
    """Date of a run [MJD] from DATE-AVG, or DATE-OBS with TIME-OBS; NaN without them."""
    from astropy.time import Time

    day, clock = str(header.get("DATE-OBS") or "").strip(), str(header.get("TIME-OBS") or "").strip()
    for text in (str(header.get("DATE-AVG") or "").strip(), f"{day}T{clock}" if clock and "T" not in day else day):
        try:
            return float(Time(text.replace(" ", "T"), scale="utc").mjd)
        except ValueError:
            continue
    return float("nan")


def read_threshold(path: str, hdu: str = "", obs_id: int = 0) -> float:
    """Energy threshold of a run [TeV] from its effective area.

    ``LO_THRES`` where the header gives it, else the energy at which the effective area at 0.5 deg first reaches
    10 % of its maximum.
    """
    with open_fits(path, obs_id) as hdus:
        aeff = find_hdu(hdus, hdu, "EFF_AREA", obs_id, path)
        threshold = number(aeff.header, "LO_THRES")
        if threshold > 0:
            return threshold
        names = getattr(aeff.data, "names", ())
        row = {name.upper(): np.asarray(aeff.data[name][0], dtype=float) for name in names}
    if not {"ENERG_LO", "ENERG_HI", "THETA_LO", "THETA_HI", "EFFAREA"} <= row.keys():
        raise RunError(f"run {obs_id}: the effective area of {path} is no table of energy, offset and area")
    energy = np.sqrt(row["ENERG_LO"] * row["ENERG_HI"])
    theta = (row["THETA_LO"] + row["THETA_HI"]) / 2
    area = np.array([np.interp(THRESHOLD_OFFSET, theta, column) for column in row["EFFAREA"].T])
    if not area.max() > 0:
        raise RunError(f"run {obs_id}: the effective area of {path} is nowhere above zero")
    return float(energy[np.flatnonzero(area >= THRESHOLD_FRACTION * area.max())[0]])
