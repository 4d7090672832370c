"""Events, good time intervals, observing conditions and energy threshold of one DL3 file.

Plain columns, files read forwards once and closed at once: an archive of 20,000 runs goes through here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.dl3.doubt import believed, check_events, check_numbers
from dask_bkg.dl3.effective_area import area_curve, area_integral, area_threshold, declared_threshold
from dask_bkg.dl3.fingerprint import fingerprint
from dask_bkg.dl3.hdus import BROKEN, Hdu, Hdus, find_hdu, find_hdus, open_fits
from dask_bkg.dl3.headers import conditions, mission_mjd, number, parallactic, text, unit_of_times
from dask_bkg.dl3.intervals import check_intervals, good_rows
from dask_bkg.dl3.times import clock_of, seconds_of_cards, shift_between
from dask_bkg.dl3.units import factor
from dask_bkg.errors import RunError
from dask_bkg.files.read import LARGEST
from dask_bkg.schema import RUN_NUMBERS
from dask_bkg.sky import fov
from dask_bkg.sky.horizon import Times

WORTH_A_NOTE = 0.01
"""Share of events outside of the good time intervals from which a note is made."""

QUANTILE = 0.25
"""Of ln E of the events: stands for a run's threshold where there is no effective area."""

SAMPLE = 2000
"""Events from which it is seen where in the field they are."""

POINTING_MODES = ("", "POINTING", "WOBBLE", "ON", "OFF", "ONOFF", "ON/OFF", "TRACKING", "TRACK")
"""Observing modes (OBS_MODE) in which the pointing stays at one place of the sky during a run."""

FRAMES = ("", "ICRS", "FK5")
"""Frames (RADECSYS, RADESYS) whose positions are those of ICRS to 0.03 arcsec."""

INSTRUMENT = ("TELESCOP", "INSTRUME", "ARRAY", "SUBARRAY")
"""Cards by which runs are of the same instrument."""

ESSENTIAL = ("RA_PNT", "DEC_PNT", "MJDREFI", "MJDREFF", "MJDREF", "TSTART", "TSTOP")
"""Cards that must be numbers where they are there."""

REMEDY = "correct it, or leave the run out"


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
    aeff_path, aeff_hdu
        The same for the effective area, which a run may lack.
    limit
        Most bytes of a file, unpacked; a larger one is not read.
    """

    obs_id: int
    path: str
    events_hdu: str = ""
    gti_path: str = ""
    gti_hdu: str = ""
    aeff_path: str = ""
    aeff_hdu: str = ""
    limit: int = LARGEST


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
    telescopes
        Those that took part, as the file writes them (TELLIST).
    fingerprint
        Digest of what the events and good time intervals say, see `dask_bkg.dl3.fingerprint`.
    untimely
        RA, Dec [deg] and energy [TeV] of events outside of the good time intervals that were left out for that alone,
        shape ``(3, events)``; None: there are none.
    times
        When those events came that were not left out, and the good time; None: unknown.
    instrument
        Telescope, instrument and array of the file (`INSTRUMENT`), empty if it does not say.
    """

    ra: NDArray
    dec: NDArray
    energy: NDArray
    numbers: dict[str, float]
    object: str
    note: str
    telescopes: str = ""
    fingerprint: str = ""
    untimely: NDArray | None = None
    times: Times | None = None
    instrument: str = ""


class _Tables(NamedTuple):
    """What was read of a run's files."""

    header: Mapping[str, Any]
    events: tuple[NDArray, NDArray, NDArray, NDArray | None]
    gti: tuple[NDArray, NDArray, Mapping[str, Any]]
    note: str
    area: dict[str, float]
    fingerprint: str


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
    try:
        return _read(run, cut_time)
    except RunError:
        raise
    except EOFError as error:
        raise RunError(
            f"run {run.obs_id}: {run.path} is not a whole FITS file ({error}): copy it again, or leave the run out"
        ) from error
    except Exception as error:  # any error that a damaged header causes in numpy or ERFA is one of this run alone
        raise RunError(
            f"run {run.obs_id}: {run.path} cannot be understood ({type(error).__name__}: {error}): {REMEDY}"
        ) from error


def _read(run: RunFile, cut_time: bool) -> RunEvents:
    tables = _read_tables(run)
    _check_header(tables.header, run)
    header, notes = believed(tables.header)
    tables, gti, (ra, dec, energy, time) = tables._replace(header=header), tables.gti, tables.events
    # directions that are none, as those of events that were not reconstructed
    whole = (np.abs(ra) <= 720) & (np.abs(dec) <= 90) & np.isfinite(energy) & (energy > 0)
    try:
        times = _times(tables)
        notes += [tables.note, _check_good_time(tables, times)]
        notes += check_events(ra[whole], dec[whole], energy[whole], None if time is None else time[whole])
        of_run = _conditions(gti, header)
    except ValueError as error:
        raise RunError(f"run {run.obs_id}: {run.path} {error}: {REMEDY}") from error
    good = whole & _inside(times, times.events) if cut_time and times.events is not None else whole
    if not good.any():
        wrong = "is within a good time interval" if whole.any() else "has a position and an energy > 0"
        raise RunError(f"run {run.obs_id}: none of the {good.size} events of {run.path} {wrong}: {REMEDY}")
    late = np.flatnonzero(whole & ~good)
    untimely = np.array([ra[late], dec[late], energy[late]]) if late.size else None
    if not good.all():
        ra, dec, energy = ra[good], dec[good], energy[good]
        times = times._replace(events=None if times.events is None else times.events[good])
    unknown = dict.fromkeys(RUN_NUMBERS, float("nan"))
    numbers = {**unknown, **of_run, **tables.area, "n_events": float(energy.size)}
    numbers["ln_e_q25"], numbers["ln_e_max"] = (float(np.log(np.quantile(energy, part))) for part in (QUANTILE, 1))
    pointing = number(header, "RA_PNT")
    if not (abs(pointing) <= 720 and abs(numbers["dec_pnt"]) <= 90):
        raise RunError(
            f"run {run.obs_id}: no pointing (RA_PNT, DEC_PNT) in the EVENTS header of {run.path} (they are "
            f"{header.get('RA_PNT')!r} and {header.get('DEC_PNT')!r}): {REMEDY}"
        )
    numbers |= _place(ra, dec, numbers)
    if not 0 <= pointing <= 360:
        notes.append(f"RA_PNT = {pointing:g} is taken for {numbers['ra_pnt']:g} deg")
    notes += [*check_numbers(numbers, times, ra, dec), _left_out(good.size, int((~whole).sum()), late.size)]
    labels = text(header, "OBJECT"), "; ".join(filter(None, notes)), text(header, "TELLIST")
    instrument = " ".join(filter(None, (text(header, card) for card in INSTRUMENT)))
    return RunEvents(ra, dec, energy, numbers, *labels, tables.fingerprint, untimely, times, instrument)


def _place(ra: NDArray, dec: NDArray, numbers: Mapping[str, float]) -> dict[str, float]:
    """How far from the pointing the events are, and whether more of them are on one side (`dask_bkg.schema`)."""
    some = slice(None, None, max(ra.size // SAMPLE, 1))  # they are in the order of time: any of them are like all
    lon, lat = fov.to_fov(ra[some], dec[some], numbers["ra_pnt"], numbers["dec_pnt"])
    offset = np.maximum(np.hypot(lon, lat), 1e-9)  # one at the pointing itself has no direction
    mean = np.hypot((lon / offset).mean(), (lat / offset).mean())
    return {"off_q90": float(np.quantile(offset, 0.9)), "lopsided": float(mean)}


def _check_header(header: Mapping[str, Any], run: RunFile) -> None:
    """Raise `RunError` for a card that means what the reduction does not do."""
    words = [card for card in ESSENTIAL if text(header, card) and not np.isfinite(number(header, card))]
    frame = text(header, "RADESYS") or text(header, "RADECSYS")
    equinox = number(header, "EQUINOX", 2000.0)
    if words:
        wrong = f"{words[0]} = {header[words[0]]!r}, which is no number"
    elif text(header, "OBS_MODE").upper() not in POINTING_MODES:
        accepted = ", ".join(POINTING_MODES[1:])
        wrong = f"OBS_MODE = {header['OBS_MODE']!r}, not a fixed pointing (accepted are {accepted})"
    elif frame.upper() not in FRAMES:
        wrong = f"RADECSYS = {frame!r}: accepted are {', '.join(FRAMES[1:])}"
    elif frame.upper() == "FK5" and equinox != 2000:
        wrong = f"EQUINOX = {header['EQUINOX']!r}: accepted is 2000"
    else:
        return
    raise RunError(f"run {run.obs_id}: EVENTS of {run.path} has {wrong}: {REMEDY}")


def _check_good_time(tables: _Tables, times: Times) -> str:
    """Remarks on the good time intervals; `ValueError` if they contradict the header or the events."""
    start, stop, gti_header = tables.gti
    declared = seconds_of_cards(gti_header, "TSTART", "TSTOP")
    # the intervals from the reference of the header that the cards are in
    if not np.isfinite(declared).all():
        start, stop, declared = times.start, times.stop, seconds_of_cards(tables.header, "TSTART", "TSTOP")
    ontime = max(number(tables.header, "ONTIME", 0.0), number(tables.header, "TELAPSE", 0.0))
    events = None if times.events is None else times.events + (start[0] - times.start[0])
    return check_intervals(start, stop, declared, ontime, events)


def _read_tables(run: RunFile) -> _Tables:
    """The tables of a run; each file is opened once."""
    with open_fits(run.path, run.obs_id, run.limit) as hdus:
        events, twins = _only_hdu(hdus, run.events_hdu, "EVENTS", run, run.path)
        columns = _event_columns(events, run)
        if run.gti_path in ("", run.path):
            gti, start, stop, note = _good_time(hdus, run, run.path)
        seen = _area_numbers(hdus, run, events) if run.aeff_path in ("", run.path) else {}
    if run.gti_path not in ("", run.path):
        with open_fits(run.gti_path, run.obs_id, run.limit) as hdus:
            gti, start, stop, note = _good_time(hdus, run, run.gti_path)
    if run.aeff_path not in ("", run.path):
        seen = _numbers_of_another_file(run, events)
    notes = "; ".join(filter(None, (twins, _other_unit(events), note)))
    return _Tables(events.header, columns, (start, stop, gti.header), notes, seen, fingerprint([events, gti]))


def _only_hdu(hdus: Hdus, name: str, hdu_class: str, run: RunFile, path: str) -> tuple[Hdu, str]:
    """The HDU of a name or class, and a remark if it is there several times; `RunError` if these differ."""
    first, *others = find_hdus(hdus, name, hdu_class, run.obs_id, path)
    if not others:
        return first, ""
    if len({fingerprint([hdu]) for hdu in (first, *others)}) > 1:
        raise RunError(
            f"run {run.obs_id}: {path} has {len(others) + 1} HDUs {first.name} that differ: remove the wrong ones"
        )
    return first, f"{first.name} is there {len(others) + 1} times, and all are equal"


def _other_unit(events: Hdu) -> str:
    """A remark if the two places for the unit of the energy contradict each other."""
    older, unit = text(events.header, "EUNIT"), events.unit("ENERGY")
    if not older or not unit or older.lower() == unit.lower():
        return ""
    return f"ENERGY is taken in {unit} (TUNIT), not in {older} (EUNIT)"


def _area_numbers(hdus: Hdus, run: RunFile, events: Hdu) -> dict[str, float]:
    """Thresholds and integral of the effective area; what it does not have is left out, which is no error."""
    try:
        hdu, _ = _only_hdu(hdus, run.aeff_hdu, "EFF_AREA", run, run.path)
    except (RunError, *BROKEN):
        return {"lo_thres": declared_threshold(events.header)}
    numbers = {"lo_thres": declared_threshold(hdu.header, events.header)}
    try:
        curve = area_curve(hdu)
    except BROKEN:
        return numbers
    return {**numbers, "e_thres": area_threshold(curve), "aeff_integral": area_integral(curve)}


def _numbers_of_another_file(run: RunFile, events: Hdu) -> dict[str, float]:
    try:
        with open_fits(run.aeff_path, run.obs_id, run.limit) as hdus:
            return _area_numbers(hdus, run, events)
    except RunError:
        return {"lo_thres": declared_threshold(events.header)}


def _left_out(n_events: int, broken: int, untimely: int) -> str:
    """What to say of events that were not used, empty if all were."""
    # intervals in whole seconds cut an event or two off every run: not worth a word
    untimely = untimely if untimely > WORTH_A_NOTE * n_events else 0
    reasons = ((broken, "without a position or an energy > 0"), (untimely, "outside of the good time intervals"))
    return "; ".join(f"{n} of {n_events} events {why} left out" for n, why in reasons if n)


def _event_columns(hdu: Hdu, run: RunFile) -> tuple[NDArray, NDArray, NDArray, NDArray | None]:
    """RA, Dec [deg], energy [TeV] and, where it is there, mission time [s] of the events."""
    names = list(hdu.columns)
    missing = [c for c in ("RA", "DEC", "ENERGY") if c not in names]
    if missing:
        raise RunError(
            f"run {run.obs_id}: EVENTS of {run.path} has no column {', '.join(missing)} (it has "
            f"{', '.join(names)}): {REMEDY}"
        )
    if hdu.rows == 0:
        raise RunError(f"run {run.obs_id}: EVENTS of {run.path} has no rows: leave the run out")
    wanted = {"RA": "deg", "DEC": "deg", "ENERGY": "TeV"} | ({"TIME": "s"} if "TIME" in names else {})
    # EUNIT is older than the units of columns, TIMEUNIT holds for all times of a table
    elsewhere = {"ENERGY": text(hdu.header, "EUNIT"), "TIME": unit_of_times(hdu.header)}
    columns = {name: _in_unit(hdu, name, unit, elsewhere.get(name, ""), run) for name, unit in wanted.items()}
    return columns["RA"], columns["DEC"], columns["ENERGY"], columns.get("TIME")


def _in_unit(hdu: Hdu, name: str, target: str, otherwise: str, run: RunFile, path: str = "") -> NDArray:
    """A column of one number a row, in the unit that it is wanted in."""
    where = f"run {run.obs_id}: the column {name} of {hdu.name} in {path or run.path} is"
    unit = hdu.unit(name) or otherwise
    if not unit:
        raise RunError(f"{where} without a unit (TUNIT): write the one that it is in, such as {target}")
    try:
        scale = factor(unit, target)
    except ValueError as error:
        raise RunError(f"{where} {error}: {REMEDY}") from error
    try:
        values = hdu.column(name)
    except ValueError as error:
        raise RunError(f"run {run.obs_id}: {path or run.path} cannot be used, as {error}: {REMEDY}") from error
    if values.size == hdu.rows:
        values = values.reshape(-1)
    if values.ndim != 1:
        raise RunError(f"{where} an array of shape {values.shape[1:]} a row, not a number: {REMEDY}")
    return values if scale == 1.0 else values * scale


def _good_time(hdus: Hdus, run: RunFile, path: str) -> tuple[Hdu, NDArray, NDArray, str]:
    """The HDU of the good time intervals, start and stop [s] from its own reference, and remarks."""
    hdu, note = _only_hdu(hdus, run.gti_hdu, "GTI", run, path)
    if not {"START", "STOP"} <= hdu.columns.keys() and run.gti_hdu:
        # index files of a public data challenge name EVENTS in all rows
        named, (hdu, note) = hdu.name, _only_hdu(hdus, "", "GTI", run, path)
        note += f"the index names {named} as the good time intervals; {hdu.name} of the file was taken"
    if hdu.rows == 0 or not {"START", "STOP"} <= hdu.columns.keys():
        raise RunError(f"run {run.obs_id}: GTI of {path} has no good time interval (columns START, STOP): {REMEDY}")
    unit = unit_of_times(hdu.header)
    start, stop = (_in_unit(hdu, name, "s", unit, run, path) for name in ("START", "STOP"))
    try:
        start, stop, left_out = good_rows(start, stop)
    except ValueError as error:
        raise RunError(f"run {run.obs_id}: {path} {error}: {REMEDY}") from error
    return hdu, start, stop, "; ".join(filter(None, (note, left_out)))


def _times(tables: _Tables) -> Times:
    """Times of a run, from the reference of its events; that of the intervals where these have none."""
    start, stop, gti_header = tables.gti
    clocks = clock_of(tables.header), clock_of(gti_header)
    of_events = clocks[0] if np.isfinite(clocks[0].reference).all() else clocks[1]
    shift = shift_between(of_events, clocks[1])
    if shift:
        start, stop = start + shift, stop + shift
    system = clocks[0].system or clocks[1].system or "TT"
    return Times(tables.events[3], start, stop, of_events.reference, system)


def _inside(times: Times, events: NDArray) -> NDArray:
    """Which events lie in a good time interval."""
    index = np.searchsorted(times.start, events, side="right") - 1
    return (index >= 0) & (events <= times.stop[index])


def _conditions(gti: tuple[NDArray, NDArray, Mapping[str, Any]], header: Mapping[str, Any]) -> dict[str, float]:
    """`conditions`, with the times and the parallactic angle of the good time intervals, which know better."""
    start, stop, gti_header = gti
    ontime, numbers = float((stop - start).sum()), conditions(header)
    livetime = numbers["livetime"]
    if not 0 < livetime <= ontime * 1.001:
        # some archives cut the intervals and leave the header: the dead-time fraction still holds
        deadc = number(header, "DEADC")
        livetime = ontime * deadc if 0 < deadc <= 1 else ontime
    numbers.update(ontime=ontime, livetime=livetime)
    reference = gti_header if "MJDREFI" in gti_header else header
    time = mission_mjd(reference, float(start[0] + stop[-1]) / 2)
    if np.isfinite(time):
        numbers["time"] = time
        numbers["parallactic"] = parallactic(numbers, text(reference, "TIMESYS") or text(header, "TIMESYS"))
    return numbers


def read_threshold(path: str, hdu: str = "", obs_id: int = 0) -> float:
    """Energy threshold of a run [TeV] from its effective area.

    ``LO_THRES`` where the header gives it, else the energy at which the effective area at 0.5 deg first reaches
    10 % of its maximum.
    """
    with open_fits(path, obs_id) as hdus:
        aeff = find_hdu(hdus, hdu, "EFF_AREA", obs_id, path)
        declared = declared_threshold(aeff.header)
        if declared > 0:
            return declared
        try:
            return area_threshold(area_curve(aeff))
        except ValueError as error:
            raise RunError(f"run {obs_id}: the effective area of {path} {error}") from error
