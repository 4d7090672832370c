"""The rooms and their doors: imports point down, and what is heavy is imported where it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dask_bkg

PACKAGE = Path(dask_bkg.__file__).parent
# fmt: off
SCIENCE = {"errors", "binning", "schema", "sky", "selection", "similarity", "background"}
BELOW_PLAN = SCIENCE | {"files", "config", "dl3", "reduction", "settings"}
BELOW_OUTPUT = BELOW_PLAN | {"plan", "store", "lazy"}
BELOW_PIPELINE = BELOW_OUTPUT | {"output", "cluster", "terminal"}

MAY_IMPORT = {
    "errors": set(),
    "terminal": set(),
    "binning": set(),
    "schema": {"binning"},
    "files": {"errors"},
    "config": {"errors"},
    # the science: arrays, no job
    "sky": {"errors"},
    "dl3": {"binning", "errors", "files", "schema", "sky"},
    "reduction": {"binning", "dl3", "errors", "schema", "sky"},
    "store": {"binning", "dl3", "errors", "files", "reduction", "schema", "sky"},
    "similarity": {"binning"},
    "selection": {"errors", "sky"},
    "background": {"binning", "errors", "schema", "selection", "sky"},
    # the job
    "settings": {"background", "binning", "config", "dl3", "errors", "reduction", "similarity"},
    "plan": BELOW_PLAN,
    "lazy": SCIENCE | {"dl3", "reduction", "store"},
    "output": BELOW_OUTPUT,
    "cluster": {"config", "errors"},
    "pipeline": BELOW_PIPELINE,
    "validation": BELOW_PIPELINE | {"pipeline"},
    "report": BELOW_PIPELINE | {"pipeline", "validation"},
    "compat": BELOW_PIPELINE | {"pipeline"},
    "simulate": {"errors"},
}
# fmt: on
ANYTHING = {"__init__", "__main__", "cli", "demo"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def rooms(names: set[str]) -> set[str]:
    """Rooms among imported names; a name that is no module of ours (a function) is left out."""
    ours = {name.split(".")[1] for name in names if name.startswith("dask_bkg.")}
    return {room for room in ours if (PACKAGE / f"{room}.py").exists() or (PACKAGE / room).is_dir()}


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    room = room_of(path)
    if room in ANYTHING:
        return
    assert room in MAY_IMPORT, f"{room} is a new room: say in the table what it may import"
    assert rooms(imports(path)) <= MAY_IMPORT[room] | {room}


def test_the_table_of_rooms_has_no_circle():
    done: set[str] = set()
    while ready := {room for room, below in MAY_IMPORT.items() if room not in done and below <= done}:
        done |= ready
    assert done == set(MAY_IMPORT)


def users_of(*programs: str) -> set[str]:
    """Files, by their path in the package, that import one of these programs."""
    return {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if room_of(path) not in ANYTHING and any(name.split(".")[0] in programs for name in imports(path))
    }


def test_only_the_job_knows_dask():
    """What wires tasks knows dask; what is done in a task does not."""
    assert {Path(name).parts[0] for name in users_of("dask", "distributed")} == {
        "lazy", "cluster", "pipeline", "validation",
    }  # fmt: skip


def test_only_the_edges_know_gammapy():
    assert users_of("gammapy") == {
        "background/irf.py", "compat.py", "pipeline/single.py", "validation/maps.py",
    }  # fmt: skip


def modules_after(code: str, *arguments: str) -> set[str]:
    """Names of the modules that are loaded after some code has run in a fresh interpreter."""
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_import_of_the_package_is_light():
    assert modules_after("import dask_bkg") & {"gammapy", "dask", "distributed", "astropy", "xarray"} == set()


@pytest.mark.slow
def test_the_hot_loop_imports_no_gammapy(four_runs, run_path):
    code = """if True:
        import sys
        from dask_bkg.reduction.reduce import reduce_run, reduce_block
        from dask_bkg.dl3.read import RunFile
        from dask_bkg.sky.exclusion import make_regions
        edges = {"energy": [0.1, 1, 10], "offset": [0, 1, 2]}
        regions = make_regions([83.6], [22.0], 0.3, ["Crab"], "own")
        run = reduce_run(sys.argv[1], 64001, edges, regions)
        assert run.counts.sum() > 0
        from dask_bkg.binning import as_edges
        block = reduce_block([RunFile(64001, sys.argv[1])], as_edges(edges), regions, "geometry", "disc")
        assert block.counts.sum() == run.counts.sum()
    """
    loaded = modules_after(code, str(run_path(four_runs, 64001)))
    assert "astropy" in loaded
    assert loaded & {"gammapy", "distributed", "matplotlib", "regions"} == set()


@pytest.mark.slow
def test_planning_imports_no_gammapy():
    assert "gammapy" not in modules_after("import dask_bkg.plan, dask_bkg.background.stack, dask_bkg.config")


def test_every_public_name_exists_and_a_wrong_one_is_told():
    for name in dask_bkg.__all__:
        assert callable(getattr(dask_bkg, name)), name
    with pytest.raises(AttributeError, match="public names are"):
        _ = dask_bkg.reduce_ruin
