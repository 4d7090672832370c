"""The rooms and their doors: imports point down, and what is heavy is imported where it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dask_bkg

PACKAGE = Path(dask_bkg.__file__).parent
CONFIG = {"config", "config_io", "config_keys", "config_models", "config_values"}
BELOW_PLAN = {
    "kernels", "errors", "fov", "schema", "exclusion", "catalogs", "rate", "filling", "uncertainty", "own",
    "modulation", "sidefiles", "dl3", "irf",
}  # fmt: skip
RUNS = {"selection", "similarity", "archive", "stacking"}
BELOW_PIPELINE = BELOW_PLAN | CONFIG | RUNS | {
    "plan", "roster", "runlists", "journal", "model", "products", "bookkeeping", "prepare", "cluster", "lazy",
    "collect", "matrix", "memory", "wiring",
}  # fmt: skip

# fmt: off
MAY_IMPORT = {
    "errors": set(),
    "kernels": set(),
    "fov": set(),
    "schema": set(),
    "exclusion": {"fov"},
    "catalogs": {"exclusion", "errors"},
    "splines": set(),
    "smoothing": {"fov", "splines"},
    "nodes": set(),
    "uncertainty": set(),
    "filling": {"uncertainty"},
    "own": set(),
    "rate": {"filling", "smoothing", "nodes", "uncertainty"},
    "modulation": {"modulation", "fov", "nodes", "rate", "filling", "smoothing", "uncertainty"},
    "selection": {"selection", "fov", "errors"},
    "similarity": {"similarity", "kernels", "schema"},
    "archive": {"archive", "schema", "dl3", "kernels", "exclusion", "errors"},
    **dict.fromkeys(CONFIG, CONFIG | {"errors"}),
    "dl3": {"dl3", "kernels", "schema", "fov", "exclusion", "errors"},
    "irf": {"schema", "rate"},
    "sidefiles": {"schema", "dl3", "errors"},
    "plan": {"config", "dl3", "catalogs", "exclusion", "fov", "modulation", "rate", "schema", "similarity", "errors"},
    "runlists": {"config", "plan", "selection"},
    "journal": set(),
    "roster": {"archive", "collect", "dl3", "fov", "plan", "selection", "runlists", "errors"},
    "prepare": {"config", "config_io", "dl3", "errors"},
    "stacking": {"kernels", "selection"},
    "model": {"dl3", "plan", "modulation", "rate", "own", "uncertainty", "schema", "selection", "irf", "errors"},
    "products": {
        "dl3", "plan", "model", "modulation", "rate", "filling", "uncertainty", "sidefiles", "selection", "errors",
    },
    "bookkeeping": {
        "config", "config_io", "dl3", "plan", "products", "sidefiles", "catalogs", "runlists", "journal", "errors",
    },
    "cluster": {"cluster", "config", "errors"},
    "memory": {"config", "plan", "selection"},
    "lazy": {"lazy", "schema", "sidefiles", "dl3", "exclusion", "errors"} | RUNS,
    "collect": BELOW_PIPELINE - {"collect", "matrix", "roster", "memory", "wiring"},
    "matrix": BELOW_PIPELINE - {"matrix", "wiring"},
    "wiring": BELOW_PIPELINE - {"wiring"},
    "pipeline": BELOW_PIPELINE,
    "single": BELOW_PIPELINE | {"pipeline"},
    "compat": BELOW_PIPELINE | {"pipeline", "single"},
    "validation": {"validation", "exclusion", "fov"},
    "trial": {"archive", "dl3", "model", "modulation", "plan", "schema", "selection", "validation", "errors"},
    "scored": {"catalogs", "collect", "config", "dl3", "plan", "roster", "trial", "validation", "errors"},
    "held_out": BELOW_PIPELINE | {"pipeline", "scored", "trial", "validation"},
    "simulate": {"simulate", "dl3", "errors", "schema", "kernels", "fov"},
}
# fmt: on
ANYTHING = {"__init__", "cli", "report", "picture", "demo"}


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
    assert rooms(imports(path)) <= MAY_IMPORT[room]


def test_the_table_of_rooms_has_no_circle():
    done: set[str] = set()
    left = {room: below - {room} - (CONFIG if room in CONFIG else set()) for room, below in MAY_IMPORT.items()}
    while ready := {room for room, below in left.items() if room not in done and below <= done}:
        done |= ready
    assert done == set(MAY_IMPORT)


def outsiders(*programs: str) -> set[str]:
    return {room_of(path) for path in FILES if any(name.split(".")[0] in programs for name in imports(path))}


def test_only_the_upper_rooms_know_dask():
    """What wires tasks knows dask; what is done in a task does not."""
    wiring = {"lazy", "collect", "matrix", "wiring", "pipeline", "single", "cluster", "memory", "scored", "held_out"}
    assert outsiders("dask", "distributed") - ANYTHING == wiring


def test_only_the_edges_know_gammapy():
    assert outsiders("gammapy") - ANYTHING == {"irf", "single", "compat", "validation"}


def modules_after(code: str, *arguments: str) -> set[str]:
    """Names of the modules that are loaded after some code has run in a fresh interpreter."""
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_import_of_the_package_is_light():
    assert modules_after("import dask_bkg") & {"gammapy", "dask", "distributed", "astropy", "xarray"} == set()


def test_the_hot_loop_imports_no_gammapy(four_runs, run_path):
    code = """if True:
        import sys
        from dask_bkg.dl3.reduce import reduce_run, reduce_block
        from dask_bkg.dl3.read import RunFile
        from dask_bkg.exclusion import make_regions
        edges = {"energy": [0.1, 1, 10], "offset": [0, 1, 2]}
        regions = make_regions([83.6], [22.0], 0.3, ["Crab"], "own")
        run = reduce_run(sys.argv[1], 64001, edges, regions)
        assert run.counts.sum() > 0
        from dask_bkg.schema import as_edges
        block = reduce_block([RunFile(64001, sys.argv[1])], as_edges(edges), regions, "geometry", "disc")
        assert block.counts.sum() == run.counts.sum()
    """
    loaded = modules_after(code, str(run_path(four_runs, 64001)))
    assert "astropy" in loaded
    assert loaded & {"gammapy", "distributed", "matplotlib", "regions"} == set()


def test_planning_imports_no_gammapy():
    assert "gammapy" not in modules_after("import dask_bkg.plan, dask_bkg.stacking, dask_bkg.config")


def test_every_public_name_exists_and_a_wrong_one_is_told():
    for name in dask_bkg.__all__:
        assert callable(getattr(dask_bkg, name)), name
    with pytest.raises(AttributeError, match="public names are"):
        _ = dask_bkg.reduce_ruin
