"""The comparison of two checkouts: one is the same as itself, and whatever is altered is found."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    name = "benchmark_same_outputs"
    spec = importlib.util.spec_from_file_location(name, CHECKOUT / "benchmarks" / "same_outputs.py")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded  # where its dataclass looks up annotations
    spec.loader.exec_module(loaded)
    return loaded


def edit_bytes(path: Path, hdu: str, comment: bool) -> None:
    """Change a byte of a HDU of a gzipped file: of its data, or of a comment of its header."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    with fits.open(io.BytesIO(bytes(raw))) as hdus:
        place = hdus[hdu].fileinfo()
    at = raw.index(b" / ", place["hdrLoc"]) + 3 if comment else place["datLoc"] + 100
    raw[at] ^= 1
    path.write_bytes(gzip.compress(bytes(raw)))


def scale(path: Path, hdu: str, column: str, factor: float) -> None:
    """Change one number of a table of a FITS file, and no other byte."""
    with fits.open(io.BytesIO(gzip.decompress(path.read_bytes()))) as hdus:
        raw, place = bytearray(gzip.decompress(path.read_bytes())), hdus[hdu].fileinfo()
        values = hdus[hdu].data[column]
        values[np.unravel_index(np.argmax(values), values.shape)] *= factor
        data = hdus[hdu].data.tobytes()
        raw[place["datLoc"] : place["datLoc"] + len(data)] = data
    path.write_bytes(gzip.compress(bytes(raw)))


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def scaled(arrays: dict[str, np.ndarray], variable: str, factor: float) -> dict[str, np.ndarray]:
    """Arrays with one number of one variable changed."""
    values = arrays[variable].copy()
    values.flat[np.argmax(values)] *= factor
    return {**arrays, variable: values}


def without(arrays: dict[str, np.ndarray], variable: str) -> dict[str, np.ndarray]:
    return {name: values for name, values in arrays.items() if name != variable}


def edit_json(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.timeout(900)  # the jobs of --quick twice, each time in a new process
def test_a_checkout_is_the_same_as_itself_and_what_is_altered_is_found(script, tmp_path, capsys):
    kept = tmp_path / "kept"
    assert script.main([str(CHECKOUT), "--quick", "--keep", str(kept)]) == 0
    capsys.readouterr()
    assert script.main([str(kept), str(CHECKOUT)]) == 0
    table = [line.split("  ") for line in capsys.readouterr().out.splitlines() if line.rstrip().endswith("same")]
    compared = {line[0]: int(next(cell for cell in line[1:] if cell.strip())) for line in table}
    assert set(compared) == set(script.KINDS)
    assert compared["divergence tables"] == 6
    assert compared["DL3 files"] == 6 * 3  # the archive, copies, and background files

    def edit(path: Path, change, *arguments) -> None:
        script.save_arrays(path, change(arrays_of(path), *arguments))

    run = Path("rings-kl", "data", "run_064001.fits.gz")
    rates = Path("datasets", "rings-kl", "results", "backgrounds.npz")
    provenance = Path("rings-kl", "results", "provenance.json")
    # what is altered, and the status with --rtol 0 and 0.01
    changes = {
        "byte of the events": (lambda at: edit_bytes(at / run, "EVENTS", comment=False), 1, 1),
        "comment of a header": (lambda at: edit_bytes(at / run, "EVENTS", comment=True), 1, 0),
        "rate of a file": (lambda at: scale(at / run, "BACKGROUND", "BKG", 1.001), 1, 0),
        "rate of a file by much": (lambda at: scale(at / run, "BACKGROUND", "BKG", 1.1), 1, 1),
        "rate of a dataset": (lambda at: edit(at / rates, scaled, "rate", 1.001), 1, 0),
        "variable of a dataset": (lambda at: edit(at / rates, without, "error"), 1, 1),
        "counts of the run store": (
            lambda at: edit(at / "datasets" / "runs.zarr" / "fine.npz", scaled, "counts", 2),
            1,
            1,
        ),
        "file": (lambda at: (at / run).unlink(), 1, 1),
        "file more": (lambda at: shutil.copy(at / run, at / run.with_name("run_000001.fits.gz")), 1, 1),
        "row of the index": (
            lambda at: scale(at / "rings-kl" / "obs-index.fits.gz", "OBS_INDEX", "LIVETIME", 2),
            1,
            1,
        ),
        "status of a run": (lambda at: edit_json(at / provenance, '"status": "done"', '"status": "failed"'), 1, 1),
        "digest": (lambda at: edit_json(at / provenance, '"digest": "', '"digest": "0'), 1, 0),
        "exit status": (lambda at: edit_json(at / "status.json", '"rings-kl": 0', '"rings-kl": 3'), 1, 1),
    }
    for name, (change, exactly, nearly) in changes.items():
        altered = shutil.copytree(kept, tmp_path / "altered")
        change(altered)
        places = [str(kept), str(altered)]
        assert (script.main(places), script.main([*places, "--rtol", "0.01"])) == (exactly, nearly), name
        shutil.rmtree(altered)
    # a variable that is left out on purpose
    altered = shutil.copytree(kept, tmp_path / "altered")
    edit(altered / rates, without, "error")
    assert script.main([str(kept), str(altered), "--lost", "error"]) == 0


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ([1.0, np.nan, np.inf], [1.0, np.nan, np.inf], 0.0),
        ([1.0, 2.0], [1.0, 2.02], 0.02 / 2.02),
        ([0.0], [1e-300], 1.0),
        ([np.nan], [1.0], np.inf),
        ([np.inf], [1.0], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        (["a"], ["b"], np.inf),
        ([2**60], [2**60 + 1], np.finfo(float).tiny),
    ],
)
def test_relative_difference(script, one, two, expected):
    assert script.relative_difference(np.array(one), np.array(two)) == pytest.approx(expected, rel=1e-12, abs=0)
    assert script.relative_difference(np.array(two), np.array(one)) == pytest.approx(expected, rel=1e-12, abs=0)


def test_floats_of_two_precisions_are_compared_in_the_lower_one(script):
    exact = np.array([0.1, 1 / 3])
    assert script.relative_difference(exact.astype(np.float32), exact) == 0
    assert script.relative_difference(exact.astype(np.float32), 1.001 * exact) == pytest.approx(0.001, rel=1e-3)


def test_a_variable_may_be_found_by_its_role(script, tmp_path):
    counts, shape = np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3) + 10
    before = {"counts": counts, "shape_counts": shape, "written": np.array(1)}
    after = {"counts": np.stack([shape, counts], axis=1), "role": np.array(["shape", "spectrum"])}

    def difference(changed: dict) -> float:
        for name, arrays in (("one", before), ("two", after | changed)):
            script.save_arrays(tmp_path / f"{name}.npz", arrays)
        return script.compare_datasets(tmp_path / "one.npz", tmp_path / "two.npz", 0.0, frozenset()).relative

    assert difference({}) == 0
    assert difference({"counts": np.stack([counts, shape], axis=1)}) > 0
    assert difference({"role": np.array(["night", "spectrum"])}) == np.inf


def test_texts_are_compared_without_versions_and_times(script, tmp_path):
    def difference(changed: dict, rtol: float = 0.0) -> bool:
        content = {"jobs": {"a": {"n": 1}}, "job": "a", "versions": {"numpy": "1"}, "files": [[7, 100]], "hours": 2.0}
        for name, text in (("one", content), ("two", content | changed)):
            (tmp_path / f"{name}.json").write_text(json.dumps(text))
        found = script.compare_texts(tmp_path / "one.json", tmp_path / "two.json", rtol, frozenset())
        return found.relative > rtol

    assert not difference({"jobs": {"b": {"n": 1}}, "job": "b", "versions": {}, "files": [[7, 200]], "new": 1})
    assert difference({"jobs": {"b": {"n": 2}}})
    assert difference({"files": [[8, 100]]})
    assert difference({"hours": 2.0000001})
    assert not difference({"hours": 2.0000001}, 1e-6)


def test_wrong_usage(script, tmp_path):
    for arguments in ([str(CHECKOUT)], [str(tmp_path), str(CHECKOUT)], [str(CHECKOUT)] * 3):
        with pytest.raises(SystemExit) as error:
            script.main(arguments)
        assert error.value.code == 2
