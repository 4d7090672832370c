"""Numbers of an obs-index: units honoured or refused by name; what cannot be right is unknown, and logged."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
import pytest
from astropy import units as u
from astropy.table import Table

from dask_bkg.dl3.index import read_datastore
from dask_bkg.errors import ArchiveError


@pytest.fixture
def obs(four_runs):
    """The obs-index of an archive, and a function that writes it changed and reads it."""
    path = four_runs / "obs-index.fits.gz"

    def read(**columns) -> Table:
        table = Table.read(path)
        for name, values in columns.items():
            table[name] = values
        table.write(path, overwrite=True)
        return read_datastore(four_runs).obs

    return read_datastore(four_runs).obs, read


def test_units_are_honoured(obs):
    before, read = obs
    after = read(
        RA_PNT=before["RA_PNT"].quantity.to("mrad"),
        DEC_PNT=before["DEC_PNT"].quantity.to("rad"),
        ALT_PNT=before["ALT_PNT"].quantity.to("arcmin"),
        ONTIME=before["ONTIME"].quantity.to("h"),
        TSTART=before["TSTART"].quantity.to("d"),
        SAFE_ENERGY_LO=np.full(len(before), 200.0) * u.GeV,
    )
    for name in ("RA_PNT", "DEC_PNT", "ALT_PNT", "ONTIME", "TSTART"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-6)
        assert after[name].unit == before[name].unit
    np.testing.assert_allclose(after["SAFE_ENERGY_LO"], 0.2)


def test_times_without_a_unit_are_in_timeunit(obs, four_runs):
    before, _ = obs
    table = Table.read(four_runs / "obs-index.fits.gz")
    for name in ("TSTART", "TSTOP"):
        table[name] = np.asarray(before[name]) / 86400
        table[name].unit = None
    table.meta["TIMEUNIT"] = "d"
    table.write(four_runs / "obs-index.fits.gz", overwrite=True)
    after = read_datastore(four_runs).obs
    np.testing.assert_allclose(after["TSTART"], before["TSTART"], rtol=1e-12)
    assert after.meta["TIMEUNIT"] == "s"


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        (
            "ZEN_PNT",
            np.full(4, 20.0) * u.Unit("s"),
            r"column ZEN_PNT in the unit 's', which cannot be converted to deg",
        ),
        ("ONTIME", np.full(4, 1.0) * u.Unit("m"), r"column ONTIME in the unit 'm', which cannot be converted to s"),
        ("NSBLEVEL", np.full(4, "dark"), r"column NSBLEVEL that holds no single numbers"),
        ("AZ_PNT", np.zeros((4, 2)), r"column AZ_PNT that holds no single numbers"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(obs, name, values, said):
    with pytest.raises(ArchiveError, match=rf"obs-index\.fits\.gz .*{said}"):
        obs[1](**{name: values})


def test_angles_out_of_range(obs, caplog):
    before, read = obs
    angles = {name: np.array(before[name], dtype=float) for name in ("RA_PNT", "DEC_PNT", "ALT_PNT")}
    angles["RA_PNT"][0] += 360
    angles["DEC_PNT"][1], angles["ALT_PNT"][2] = 120.0, -110.0
    after = read(**{name: column * u.deg for name, column in angles.items()})
    np.testing.assert_allclose(after["RA_PNT"], before["RA_PNT"])
    assert np.isnan(after["DEC_PNT"]).tolist() == [False, True, False, False]
    assert np.isnan(after["ALT_PNT"]).tolist() == [False, False, True, False]
    for text in (
        "RA_PNT is taken mod 360 for 1 run(s): 64001",
        "DEC_PNT is not between -90 and 90 and left unknown for 1 run(s): 64002",
        "ALT_PNT is not between 0 and 90 and left unknown for 1 run(s): 64003",
    ):
        assert any(text in message for message in caplog.messages)


def test_azimuths_from_the_south(obs, four_runs, caplog):
    before, read = obs
    assert not caplog.messages
    read(AZ_PNT=(before["AZ_PNT"] + 180) % 360)
    assert any("is the azimuth from north through east?) for 4 run(s)" in message for message in caplog.messages)


def test_a_packed_index_is_unpacked_within_bounds(four_runs):
    path = four_runs / "obs-index.fits.gz"
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    data = packer.compress(gzip.decompress(path.read_bytes()))
    data += b"".join(packer.compress(bytes(10_000_000)) for _ in range(60))
    path.write_bytes(data + packer.flush())
    with pytest.raises(
        ArchiveError, match=r"obs-index\.fits\.gz is too large: .* 500000000 bytes, unpacked\. Get it"
    ):
        read_datastore(four_runs)
