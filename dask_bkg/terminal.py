"""What a terminal gets: no control characters of archives, and many reasons or records of a kind as one.

Names in headers, indexes and of files can hold anything: sequences that move the cursor, change colours or clear the
screen, carriage returns that hide what stands before them, marks that turn the direction of writing. `plain_streams`
is where all text that a command prints or logs is made harmless.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

WHOLE = 10
"""Reasons up to which each is listed as it is, and records of a kind that are logged."""

MOST_KINDS = 45
"""Kinds of reasons that are listed: with head and end of a table that is less than 50 lines."""

LONGEST = 200
"""Characters of a kind of reason that are shown."""

# C0 (but for the newline), DEL, C1, marks of direction, invisible ones, separators of lines, halves of pairs
_CONTROL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
_VARYING = (
    (re.compile(r"(?<!\w)/[^\s'\",;:()]+|(?<![\w.-])[\w.-]+(?:/[\w.@+-]+)+\.\w+"), "<file>"),
    (re.compile(r"\b[0-9a-f]{12,}\b|[-+]?\d[\d_.]*(?:e[-+]?\d+)?", re.IGNORECASE), "N"),
)


def escaped(text: str) -> str:
    r"""Text with its control characters, but for newlines, as Python writes them.

    Examples
    --------
    >>> print(escaped("Crab\x1b[2J\r\u202e"))
    Crab\x1b[2J\r\u202e
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: object) -> str:
    r"""The same for what must stay on its line: newlines are written ``\n``."""
    return escaped(str(text)).replace("\n", "\\n")


class _Plain:
    """A text stream whose control characters are escaped: it is no terminal, and has no bytes below."""

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        encoding = getattr(self.raw, "encoding", None) or "utf-8"
        self.raw.write(escaped(text).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        """Say no: libraries then leave colours out."""
        return False

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self.raw, name)


@contextmanager
def plain_streams() -> Iterator[None]:
    """Escape control characters of all that is written to ``sys.stdout`` and ``sys.stderr`` meanwhile.

    An exception that nothing catches is printed after that, and escaped as well.
    """
    out, err = _Plain(sys.stdout), _Plain(sys.stderr)
    sys.excepthook = _print_exception
    with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
        yield


def _print_exception(*error: Any) -> None:
    _Plain(sys.stderr).writelines(traceback.format_exception(*error))


def raw_stderr() -> TextIO:
    """Where bars are drawn, which need control characters, and show no text of an archive."""
    return sys.stderr.raw if isinstance(sys.stderr, _Plain) else sys.stderr


def log_to_terminal(level: int, every: bool) -> None:
    """Log to ``sys.stderr``; of many records of a kind only the first `WHOLE`, unless ``every`` one is wanted."""
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", handlers=[_Log(every)])


class _Log(logging.StreamHandler):
    def __init__(self, every: bool) -> None:
        super().__init__()
        self._every, self._seen = every, Counter[str]()

    def emit(self, record: logging.LogRecord) -> None:
        kind = kind_of(record.getMessage())
        self._seen[kind] += 1
        if not self._every and self._seen[kind] > WHOLE:
            if self._seen[kind] > WHOLE + 1:
                return
            # a copy: other handlers get the record itself
            last = {"msg": f"more of this kind are not shown: {kind}", "args": ()}
            record = logging.makeLogRecord({**record.__dict__, **last})
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Indent further lines: no name with a newline in it looks like another record."""
        return super().format(record).rstrip("\n").replace("\n", "\n  ")


def kind_of(reason: str) -> str:
    """A reason without its run number, paths and figures, on one line.

    Examples
    --------
    >>> kind_of("run 64001: /data/run_64001.fits: GTI has 3 rows, ontime 12.5 s")
    '<file>: GTI has N rows, ontime N s'
    """
    reason = reason[: 10 * LONGEST]
    for pattern, word in _VARYING:
        reason = pattern.sub(word, reason)
    kind = one_line(reason.removeprefix("run N: "))
    return kind if len(kind) <= LONGEST else kind[:LONGEST] + "..."


def reason_lines(reasons: Mapping[int, str]) -> list[str]:
    """Reasons of runs as lines for a terminal: a few as they are, many by kind, less than 50 lines.

    Parameters
    ----------
    reasons
        ``{obs_id: reason}``.

    Examples
    --------
    >>> reasons = {run: f"run {run}: has {run % 2} GTI" for run in range(20, 36)}
    >>> for line in reason_lines({**reasons, 7: "run 7: gone"}):
    ...     print(line)
      runs  for example  reason
        16       run 20  has N GTI
         1        run 7  gone
    """
    if len(reasons) <= WHOLE:
        return [f"  {one_line(reason)}" for reason in reasons.values()]
    runs: dict[str, list[int]] = {}
    for obs_id, reason in reasons.items():
        runs.setdefault(kind_of(reason), []).append(obs_id)
    kinds = sorted(runs, key=lambda kind: -len(runs[kind]))
    cells = [("runs", "for example", "reason")]
    cells += [(str(len(runs[kind])), f"run {runs[kind][0]}", kind) for kind in kinds[:MOST_KINDS]]
    widths = [max(len(row[column]) for row in cells) for column in (0, 1)]
    lines = [f"  {n:>{widths[0]}}  {example:>{widths[1]}}  {kind}" for n, example, kind in cells]
    if left := kinds[MOST_KINDS:]:
        n = sum(len(runs[kind]) for kind in left)
        lines.append(f"  ... and {n} runs with {len(left)} other reasons")
    return lines
