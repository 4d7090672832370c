"""Fixtures that several test modules share: the real data, and a simulated archive made once for the session."""

import os
import shutil
from pathlib import Path

import hypothesis
import pytest
from astropy.io import fits
from helpers.slurm_fixtures import _by_threads, _slurm, by_threads, gate, site, slurm, slurm_programs  # noqa: F401

from dask_bkg.simulate import simulate_archive

# how long an example takes says more of the machine than of the code; each run has the same examples
hypothesis.settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("steady")


@pytest.fixture(scope="session")
def gammapy_data():
    """Directory of the real data; the test is skipped, with the reason, where it is absent."""
    base = os.environ.get("GAMMAPY_DATA")
    if not base or not Path(base, "hess-dl3-dr1", "hdu-index.fits.gz").is_file():
        pytest.skip("no H.E.S.S. DL3 DR1 under $GAMMAPY_DATA: get it with `gammapy download datasets`")
    return Path(base)


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """A simulated archive of 12 runs, ``(directory, truth)``; read-only by agreement."""
    directory = tmp_path_factory.mktemp("archive")
    return directory, simulate_archive(directory, runs=12, events=3000, seed=1)


@pytest.fixture(scope="session")
def dark_archive(tmp_path_factory):
    """A simulated archive without sources and stars, 12 runs, ``(directory, truth)``; read-only by agreement."""
    directory = tmp_path_factory.mktemp("dark")
    return directory, simulate_archive(directory, runs=12, events=10000, seed=2, sources=False, stars=False)


@pytest.fixture
def no_catalogs(monkeypatch, tmp_path):
    """No ``$GAMMAPY_DATA``; returns an exclusion section that does without catalogues and stars."""
    monkeypatch.delenv("GAMMAPY_DATA", raising=False)
    stars = tmp_path / "no-stars.dat"
    stars.write_text("#_RAJ2000 _DEJ2000 HIP Vmag B-V\n10.0 -80.0 1 4.0 0.1\n")
    return {"catalogs": [], "star_cat": str(stars)}


@pytest.fixture(scope="session")
def _four_runs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("four")
    simulate_archive(directory, runs=4, events=500, seed=3, sources=False, stars=False)
    return directory


@pytest.fixture
def four_runs(_four_runs, tmp_path):
    """A simulated archive of the runs 64001 ... 64004, some 400 events each, of one's own: to be damaged."""
    return Path(shutil.copytree(_four_runs, tmp_path / "four"))


@pytest.fixture
def run_path():
    """Path of a run of a simulated archive: ``run_path(directory, obs_id)``."""
    return lambda directory, obs_id: Path(directory, "data", f"run_{obs_id:06d}.fits.gz")


@pytest.fixture
def edit_run():
    """Change a FITS file: ``edit_run(path, change)``, where ``change`` gets its HDUs."""

    def edit(path, change):
        with fits.open(path, memmap=False) as opened:
            hdus = fits.HDUList([hdu.copy() for hdu in opened])
        change(hdus)
        hdus.writeto(path, overwrite=True)

    return edit


@pytest.fixture
def job(no_catalogs, tmp_path):
    """A configuration on threads, run-wise in 2D, without catalogues: ``job(archive, io={...}, binning={...}, ...)``.

    Runs are read from ``archive`` and written below ``tmp_path / "out"``; sections are added to what is there.
    """

    def make(archive, **sections):
        places = {"search_datastore": str(archive), "in_dir": str(archive), "out_dir": str(tmp_path / "out")}
        config = {
            "cluster": "threads",
            "config": {"njobs": 1},
            "binning": {"mode": "2d"},
            "exclusion": dict(no_catalogs),
            "io": {**places, "from_run": True},
        }
        for name, values in sections.items():
            config[name] = {**config.get(name, {}), **values} if isinstance(values, dict) else values
        return config

    return make
