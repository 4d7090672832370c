"""Fixtures that several test modules share: the real data, and a simulated archive made once for the session."""

import os
from pathlib import Path

import pytest

from dask_bkg.simulate import simulate_archive


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
