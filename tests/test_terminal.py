"""What a terminal gets: no control characters, and many reasons or records by kind."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
from astropy.table import Table

from dask_bkg import terminal
from dask_bkg.report.tables import format_table, write_failures
from dask_bkg.terminal import escaped, one_line, plain_streams, raw_stderr, reason_lines


def test_control_characters_are_written_as_python_does():
    every = "".join(map(chr, [*range(32), *range(127, 160), 0x202E, 0x2066, 0x2028, 0x200B, 0xDC80]))
    shown = escaped(every)
    assert shown.isascii()
    assert [c for c in shown if not c.isprintable()] == ["\n"]
    assert "\\x1b" in shown
    assert "\\u202e" in shown
    assert escaped("Crab, Sgr A*, Zürich 5°") == "Crab, Sgr A*, Zürich 5°"
    assert one_line("a\nb\x07") == "a\\nb\\x07"


def test_all_that_is_printed_goes_through_it_but_for_bars():
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        with plain_streams():
            print("\x1b[2J", "é")
            print("\r\x07", file=sys.stderr)
            sys.stderr.writelines(["\x9b", "\n"])
            assert not sys.stdout.isatty()
            assert not hasattr(sys.stdout, "buffer")
            raw_stderr().write("\r")
        assert raw_stderr() is err
    assert out.getvalue() == "\\x1b[2J é\n"
    assert err.getvalue() == "\\r\\x07\n\\x9b\n\r"


def test_what_the_terminal_cannot_show_is_escaped():
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    with redirect_stdout(raw), plain_streams():
        print("é \udc80")
    assert raw.buffer.getvalue() == b"\\xe9 \\udc80\n"


def test_an_error_that_nothing_catches_is_escaped():
    code = "from dask_bkg.terminal import plain_streams\nwith plain_streams(): raise ValueError('\\x1b[2J\\r')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.stderr.endswith(b"ValueError: \\x1b[2J\\r\n")


@pytest.fixture
def logged(monkeypatch):
    """What a logger of its own prints: ``logged(every, messages)``."""

    def log(every, *messages):
        logger, stream = logging.Logger("of a test"), io.StringIO()
        monkeypatch.setattr(logging, "root", logging.RootLogger(logging.WARNING))
        with redirect_stderr(stream), plain_streams():
            terminal.log_to_terminal(logging.INFO, every)
            logger.handlers = logging.root.handlers
            for message in messages:
                logger.warning(*message if isinstance(message, tuple) else (message,))
        return stream.getvalue().splitlines()

    return log


def test_a_record_is_one_and_looks_like_no_other(logged):
    assert logged(False, ("object %s", "Crab\nERROR: \x1b[2J")) == ["WARNING: object Crab", "  ERROR: \\x1b[2J"]


def test_of_many_records_of_a_kind_the_first_are_logged(logged):
    messages = [("run %d: %s has %d events", n, f"/data/run_{n}.fits", 3 * n) for n in range(50)]
    shown = logged(False, *messages, "another")
    assert shown[:10] == [f"WARNING: run {n}: /data/run_{n}.fits has {3 * n} events" for n in range(10)]
    assert shown[10:] == ["WARNING: more of this kind are not shown: <file> has N events", "WARNING: another"]
    assert len(logged(True, *messages)) == 50


def test_few_reasons_are_listed_as_they_are():
    reasons = {n: f"run {n}: no\nGTI" for n in range(10)}
    assert reason_lines(reasons) == [f"  run {n}: no\\nGTI" for n in range(10)]
    assert reason_lines({}) == []


KINDS = (
    "run {n}: /archive/a b/run_{n}.fits.gz is not a whole FITS file (expected {m} bytes, got {n}): copy it again",
    "run {n}: data/{n}/run_{n}.fits has no GTI HDU",
    "run {n}: ontime {m}.5e{n} s is longer than a day",
    "run {n}: its task failed (KilledWorker)",
)


def test_many_reasons_are_listed_by_kind():
    reasons = {n: KINDS[(n % 16).bit_length() - 1 if n % 16 else 3].format(n=n, m=7 * n) for n in range(64001, 64601)}
    lines = reason_lines(reasons)
    assert len(lines) == 5
    shown = {line.split("  ")[-1]: line.split() for line in lines[1:]}
    assert sum(int(words[0]) for words in shown.values()) == 600
    assert "ontime N s is longer than a day" in shown
    assert "its task failed (KilledWorker)" in shown
    for words in shown.values():
        assert words[1] == "run"
        assert terminal.kind_of(reasons[int(words[2])]) in shown


def test_hundreds_of_kinds_are_less_than_fifty_lines():
    """Of three letters each, and one of many runs; a reason may be long, and have newlines."""
    names = [a + b + c for a in "abcdefgh" for b in "ijklmno" for c in "pqrstu"]
    reasons = {n: f"run {n}: {name}\n{'x' * 5000}" for n, name in enumerate(names)}
    reasons |= {n: f"run {n}: no GTI" for n in range(1000, 1500)}
    lines = reason_lines(reasons)
    assert len(lines) <= 48
    assert lines[1].split() == ["500", "run", "1000", "no", "GTI"]
    assert max(map(len, lines)) < 250
    left = len(names) - terminal.MOST_KINDS + 1
    assert lines[-1] == f"  ... and {left} runs with {left} other reasons"


def test_the_list_of_failures_is_whole_and_goes_with_the_failures(tmp_path):
    reasons = {n: f"run {n}: \"{n} x\"\r\n\x1b[2J, 'y'\tz" for n in range(300)}
    path = write_failures(tmp_path / "results", reasons)
    assert path == tmp_path / "results" / "failures.ecsv"
    table = Table.read(path)
    assert table["OBS_ID"].tolist() == list(range(300))
    assert table["REASON"].tolist() == [one_line(reason) for reason in reasons.values()]
    assert set(table["KIND"]) == {terminal.kind_of(one_line(reasons[0]))}
    assert write_failures(tmp_path / "results", {}) is None
    assert list((tmp_path / "results").iterdir()) == []
    assert write_failures(tmp_path / "nowhere", {}) is None


def test_a_cell_of_a_table_stays_in_its_line():
    lines = format_table(["run", "object"], [[1, "a\nb\x1b"], [2, "c"]]).splitlines()
    assert lines[2:] == ["  1  a\\nb\\x1b", "  2         c"]
