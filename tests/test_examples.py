"""The examples of the docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import dask_bkg

MODULES = sorted(module.name for module in pkgutil.walk_packages(dask_bkg.__path__, "dask_bkg."))


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    find = doctest.DocTestFinder().find
    assert sum(len(test.examples) for name in MODULES for test in find(importlib.import_module(name))) > 200
