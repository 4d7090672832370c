"""Headers, indexes and names of files with control characters: a terminal shows them, and does not obey them."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import sys

import pytest
from astropy.io import fits
from astropy.table import Table

from dask_bkg.config.yaml import dump_yaml

pytestmark = pytest.mark.slow

EVIL = b"\x1b[2J\x1b]0;x\x07\r\nok"
BIDI = "\u202egnp\u2066"


def poison(path, *names: bytes) -> None:
    """Put `EVIL` where the values of header cards are: astropy would not write it."""
    content = gzip.decompress(path.read_bytes())
    for name in names:
        pattern = re.compile(re.escape(name.ljust(8)) + b"= '(.{%d})" % len(EVIL), re.DOTALL)
        content, n = pattern.subn(name.ljust(8) + b"= '" + EVIL, content)
        assert n
    path.write_bytes(gzip.compress(content))


@pytest.fixture
def archive(four_runs, run_path):
    """Run 64001 has such names in its header, 64002 in its file's, and is damaged, 64003 in names of HDUs."""
    poison(run_path(four_runs, 64001), b"OBJECT", b"TELESCOP")
    name = "run_\x1b[31m\r\n.fits.gz"
    damaged = four_runs / "data" / name
    shutil.move(run_path(four_runs, 64002), damaged)
    damaged.write_bytes(damaged.read_bytes()[:2000])
    index = Table.read(four_runs / "hdu-index.fits.gz")
    rows = {"OBS_ID": index["OBS_ID"].tolist(), **{n: [str(v).strip() for v in index[n]] for n in index.colnames[1:]}}
    for i, obs_id in enumerate(rows["OBS_ID"]):
        if obs_id == 64002:
            rows["FILE_NAME"][i] = name
        if obs_id == 64003:
            rows["HDU_NAME"][i] = "\x1b[5mEVENTS\r\n"
    columns = []
    for key, values in rows.items():
        if key == "OBS_ID":
            columns.append(fits.Column(key, "K", array=values))
        else:
            array = [value.encode("utf-8") for value in values]
            columns.append(fits.Column(key, f"{max(map(len, array))}A", array=[v.ljust(1) for v in array]))
    header = fits.getheader(four_runs / "hdu-index.fits.gz", 1)
    hdu = fits.BinTableHDU.from_columns(columns, name="HDU_INDEX")
    hdu.header.update({k: header[k] for k in ("HDUCLAS1", "HDUCLAS2") if k in header})
    hdu.writeto(four_runs / "hdu-index.fits.gz", overwrite=True)
    return four_runs.rename(four_runs.parent / f"{BIDI}\x1b[1m")


def shell(*arguments):
    command = [sys.executable, "-m", "dask_bkg", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=240)
    for stream in (done.stdout, done.stderr):
        assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", stream), stream
        assert not re.search("[\x80-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f]", stream.decode()), stream
    return done


@pytest.mark.parametrize("where", ["threads", "local"])
def test_a_job_shows_control_characters_and_does_not_print_them(archive, job, tmp_path, where):
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(job(archive, cluster=where)))
    done = shell("run", path, "--no-progress")
    text = done.stdout.decode() + done.stderr.decode()
    print(text)
    assert done.returncode == 3
    assert r"run_\x1b[31m\r\n" in text
    store = tmp_path / "out" / "results" / "runs.zarr"
    told = shell("info", store)
    assert told.returncode == 0
    print(told.stdout.decode())
