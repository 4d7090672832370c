"""Damaged files: all kinds of damage, few of each; and the benchmark sees what is BAD."""

from __future__ import annotations

import gzip
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from dask_bkg.simulate import simulate_archive

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bench_fuzz

    return bench_fuzz


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fuzz")
    simulate_archive(directory, 2, 2000, seed=1, sources=False, stars=False)
    return directory


@pytest.mark.filterwarnings("ignore")
def test_damage_of_each_kind(bench, archive, tmp_path):
    reader = bench.Reader(archive, tmp_path)
    found = [reader.look(seed, kind) for kind in bench.KINDS for seed in (1, 2, 3)]
    assert not [one for one in found if one.outcome == "BAD"]
    assert {one.outcome for one in found} == {"same", "remark", "refused"}


def test_the_same_seed_is_the_same_damage(bench, archive):
    raw = gzip.decompress(next(archive.glob("data/*")).read_bytes())
    assert bench.mutated(raw, 5) == bench.mutated(raw, 5)
    assert bench.mutated(raw, 5) != bench.mutated(raw, 6)
    parts = sys.modules["mutations"].split(raw)
    assert sys.modules["mutations"].join(parts) == raw
    columns = sys.modules["mutations"].columns_of(parts[1])
    sys.modules["mutations"].put(parts[1], columns)
    assert parts[1].data == sys.modules["mutations"].split(raw)[1].data


@pytest.mark.filterwarnings("ignore")
def test_what_is_bad_is_seen(bench, archive, tmp_path, monkeypatch):
    reader, honest = bench.Reader(archive, tmp_path), bench.reduce_views
    run, before = reader.runs[0], reader.before[0]
    assert bench.judged(run, before) == ("same", "")

    def other(change):
        def reduced(*arguments):
            found = honest(*arguments)
            change(found)
            return found

        return reduced

    def fails(error):
        def raises(*_):
            raise error

        return raises

    def halved(found):
        found.histograms[0]["counts"] //= 2

    for stand_in, why in (
        (fails(KeyError("RA")), "KeyError"),
        (fails(bench.RunError("run 1: unexpected KeyError: RA")), "unexpected"),
        (other(halved), "counts differ by -"),
        (other(lambda found: found.numbers.update(ontime=found.numbers["ontime"] * 2)), "exposures are 2.000"),
        (other(lambda found: found.numbers.update(zenith=60.0)), "zenith angle is 60.0"),
    ):
        monkeypatch.setattr(bench, "reduce_views", stand_in)
        outcome, said = bench.judged(run, before)
        assert outcome == "BAD"
        assert why in said
    monkeypatch.setattr(bench, "reduce_views", other(lambda found: found.texts.update(note="odd")))
    assert bench.judged(run, before)[0] == "remark"
    monkeypatch.setattr(bench, "reduce_views", other(lambda _: np.ones(200_000_000)))
    assert "GB" in reader.look(1, "appended").why


def run(bench, monkeypatch, capsys, scratch: Path, *arguments) -> tuple[dict, str]:
    """The script as a program that finds nothing BAD: what it writes, and what it shows."""
    written = scratch / "fuzz.json"
    monkeypatch.setattr(sys, "argv", ["bench_fuzz.py", "--json", *map(str, (written, *arguments))])
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / "bench_fuzz.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert ended.value.code == 0, shown
    return json.loads(written.read_text()), shown


@pytest.mark.slow
def test_files_by_the_script(bench, tmp_path, monkeypatch, capsys):
    content, shown = run(bench, monkeypatch, capsys, tmp_path, "--files", 250, "--events", 2000, "--jobs", 0)
    assert [one["seed"] for one in content["files"]] == list(range(1, 251))
    assert not [one for one in content["files"] if one["outcome"] == "BAD"]
    *_, counts = next(line for line in shown.splitlines() if line.split()[:1] == ["all"]).split(maxsplit=1)
    assert sum(map(int, counts.split())) == 250


@pytest.mark.slow
def test_a_process_that_dies_is_bad_and_the_next_file_is_read(bench, archive, tmp_path):
    server = bench.Server(archive, tmp_path)
    try:
        first = server.ask(7)
        server.process.kill()
        assert server.ask(7).outcome == "BAD"
        assert server.ask(7)[:3] == first[:3]
    finally:
        server.stop()


@pytest.mark.slow
def test_a_whole_job(bench, tmp_path, monkeypatch, capsys):
    arguments = ["--files", 0, "--events", 2000, "--jobs", 1, "--seed", 2]
    content, shown = run(bench, monkeypatch, capsys, tmp_path, *arguments)
    (job,) = content["jobs"]
    assert (len(job["damage"]), job["moved"]) == (10, {})
    assert "0 of 10 other backgrounds moved" in shown


def test_a_background_that_moves_is_seen(bench):
    def background(factor, error):
        rate = np.full((2, 3), factor)
        return xr.Dataset(
            {
                "rate": (("energy", "offset"), rate), "error": (("energy", "offset"), np.full((2, 3), error)),
                "counts": (("role", "energy", "offset"), np.full((1, 2, 3), 100.0)),
            },
            {"role": ["spectrum"]},
        )  # fmt: skip

    assert bench.moved_by(background(1.0, 0.1), background(1.0, 0.1)) == ""
    assert bench.moved_by(background(1.0, 0.1), background(1.02, 0.1)) == ""
    assert "2.00 of its error in a bin" in bench.moved_by(background(1.0, 0.1), background(1.2, 0.1))
    assert "in all" in bench.moved_by(background(1.0, 1.0), background(1.2, 1.0))
