"""One wrong run never bends the backgrounds of the others, and is named."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import shutil
import zlib
from pathlib import Path

import dask
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from distributed import Client, LocalCluster

from dask_bkg import prepare_dataset, run_make_background
from dask_bkg.simulate import simulate_archive

pytestmark = pytest.mark.slow

RUNS = 7
WRONG = 64003


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """An archive without sources, read-only by agreement."""
    directory = tmp_path_factory.mktemp("clean") / "dl3"
    simulate_archive(directory, runs=RUNS, events=2000, seed=8, sources=False, stars=False)
    return directory


@pytest.fixture
def archive(clean, tmp_path):
    """The same, of one's own."""
    return Path(shutil.copytree(clean, tmp_path / "dl3"))


def run_job(archive: Path, stars: dict, run_store: dict | None = None, **selection) -> Path:
    """Stacks of all runs that may contribute; returns the results."""
    base = archive.parent
    config = {
        "cluster": "threads",
        "io": {
            "search_datastore": str(archive), "in_dir": f"{base}/in", "out_dir": f"{base}/out", "from_run": False,
        },
        "binning": {"mode": "2d"},
        "run_store": run_store or {},
        "exclusion": stars,
        "background_selection": {"rank": "none", "shape_runs": "same", "night_level": 0, **selection},
    }  # fmt: skip
    run_make_background(prepare_dataset(config), progress=False)
    return base / "out" / "results"


def contributing(results: Path) -> dict[int, list[int]]:
    """Contributing runs of each background."""
    found = json.loads((results / "provenance.json").read_text())["backgrounds"]
    return {int(run): sorted(background["contributing_runs"]) for run, background in found.items()}


@pytest.mark.parametrize(("column", "value"), [("START", 0.0), ("STOP", 3e38)])
def test_good_time_of_years(archive, no_catalogs, edit_run, run_path, caplog, column, value):
    def change(hdus):
        hdus["GTI"].data[column][0] = value

    edit_run(run_path(archive, WRONG), change)
    results = run_job(archive, no_catalogs)
    made = contributing(results)
    assert WRONG not in made or not made[WRONG]
    others = {run: runs for run, runs in made.items() if run != WRONG}
    assert len(others) == RUNS - 1
    assert not any(WRONG in runs for runs in others.values())
    assert any(f"run {WRONG}: " in text and "good time intervals" in text for text in caplog.messages)


def test_a_run_with_ten_times_the_rate_of_all_others(archive, no_catalogs, edit_run, run_path, caplog):
    def change(hdus):
        events, gti = hdus["EVENTS"], hdus["GTI"]
        begin, length = gti.data["START"][0], (gti.data["STOP"][-1] - gti.data["START"][0]) / 10
        events.data["TIME"] = begin + (events.data["TIME"] - begin) / 10
        hdus["GTI"] = fits.BinTableHDU(gti.data[:1], header=gti.header, name="GTI")
        hdus["GTI"].data["START"][0], hdus["GTI"].data["STOP"][0] = begin, begin + length
        for header in (events.header, hdus["GTI"].header):
            for card in ("TSTOP", "ONTIME", "LIVETIME", "TELAPSE"):
                if card in header:
                    header[card] = begin + length if card == "TSTOP" else length

    edit_run(run_path(archive, WRONG), change)
    with caplog.at_level(logging.WARNING, "dask_bkg"):
        made = contributing(run_job(archive, no_catalogs))
    assert len(made) == RUNS
    assert not any(WRONG in runs for run, runs in made.items())
    assert len(made[WRONG]) == RUNS - 1
    assert sum(f"run {WRONG} does not contribute" in record.getMessage() for record in caplog.records) == 1
    for name in ("in", "out"):
        shutil.rmtree(archive.parent / name)
    made = contributing(run_job(archive, no_catalogs, outlier_factor=0))
    assert all(WRONG in runs for run, runs in made.items() if run != WRONG)


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (lambda events, header: events["DEC"] > header["DEC_PNT"], "half of the field is empty"),
        (lambda events, header: events["ENERGY"] < 0.3, "no event above its threshold 0.3 TeV"),
    ],
    ids=["half a camera", "all below the threshold"],
)
def test_a_run_without_the_events_that_others_have(archive, no_catalogs, edit_run, run_path, caplog, keep, words):
    def change(hdus):
        events = hdus["EVENTS"]
        hdus["EVENTS"] = fits.BinTableHDU(events.data[keep(events.data, events.header)], events.header, "EVENTS")
        for hdu in hdus[1:]:
            hdu.header["LO_THRES"] = 0.3

    edit_run(run_path(archive, WRONG), change)
    with caplog.at_level(logging.WARNING, "dask_bkg"):
        made = contributing(run_job(archive, no_catalogs))
    assert not any(WRONG in runs for run, runs in made.items())
    assert re.search(f"run {WRONG} does not contribute: .*{words}", caplog.text)


def test_runs_contribute_to_their_own_instrument(archive, no_catalogs, edit_run, run_path, caplog):
    second = {64002, 64004, 64006}
    for obs_id in second:

        def change(hdus):
            for hdu in hdus[1:]:
                hdu.header["TELESCOP"] = "BETA"

        edit_run(run_path(archive, obs_id), change)
    with caplog.at_level(logging.WARNING, "dask_bkg"):
        made = contributing(run_job(archive, no_catalogs))
    for run, runs in made.items():
        assert {other in second for other in runs} == {run in second}
    assert any("several instruments" in record.getMessage() for record in caplog.records)
    instrument = fits.getheader(archive / "data" / "run_064001.fits.gz", "EVENTS")
    names = [f"{instrument['TELESCOP']} {instrument['INSTRUME']}", f"BETA {instrument['INSTRUME']}"]
    made = contributing(run_job(archive, no_catalogs, instruments={"array": names}))
    assert all(len(runs) == RUNS - 1 for runs in made.values())


def test_files_outside_of_the_archive_are_read_and_nothing_is_written_there(archive, no_catalogs, caplog):
    outside = archive.parent / "elsewhere"
    os.rename(archive / "data", outside)
    index = Table.read(archive / "hdu-index.fits.gz")
    index["FILE_DIR"] = ["../elsewhere"] * len(index)
    index.write(archive / "hdu-index.fits.gz", overwrite=True)
    before = {path: path.read_bytes() for path in outside.iterdir()}
    with caplog.at_level(logging.INFO, "dask_bkg"):
        made = contributing(run_job(archive, no_catalogs))
    assert len(made) == RUNS
    assert {path: path.read_bytes() for path in outside.iterdir()} == before
    assert sorted(path.name for path in archive.parent.iterdir()) == ["dl3", "elsewhere", "in", "no-stars.dat", "out"]
    assert any("outside of the archive" in record.getMessage() for record in caplog.records)
    out = archive.parent / "out"
    index = Table.read(out / "hdu-index.fits.gz")
    for row in index[np.char.strip(index["HDU_TYPE"].astype(str)) == "bkg"]:
        assert (out / row["FILE_DIR"].strip() / row["FILE_NAME"].strip()).resolve().is_relative_to(out)


def test_a_run_that_kills_its_worker_takes_no_other_along(archive, no_catalogs, caplog):
    path = archive / "data" / f"run_{WRONG:06d}.fits.gz"
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    with open(path, "wb") as stream:
        stream.write(packer.compress(gzip.decompress((archive / "data" / "run_064001.fits.gz").read_bytes())))
        for _ in range(1500):
            stream.write(packer.compress(bytes(1_000_000)))
        stream.write(packer.flush())
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="700MB", dashboard_address=None) as cluster,
        Client(cluster),
    ):
        made = contributing(run_job(archive, no_catalogs, run_store={"max_file_size": 10_000}))
    done = {run: runs for run, runs in made.items() if runs}
    assert sorted(done) == [64000 + n for n in range(1, RUNS + 1) if 64000 + n != WRONG]
    assert all(len(runs) == RUNS - 2 for runs in done.values())
    assert any(f"run {WRONG}: the task that reads it failed" in text and "memory" in text for text in caplog.messages)
