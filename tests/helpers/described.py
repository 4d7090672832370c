"""Results of a job together with what its provenance says of them: runs, weights, scores, flags, notes."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace


def described(summary) -> list[SimpleNamespace]:
    """Results of a job in their order; with ``contributing``, ``weights`` and ``scores`` as tuples, empty if none."""
    entries = json.loads((summary.results_dir / "provenance.json").read_text())["backgrounds"]
    found = []
    for result in summary.results:
        entry = entries[str(result.obs_id)] if result.done else {}
        more = {name: tuple(entry.get(name, ())) for name in ("weights", "scores")}
        more |= {"contributing": tuple(entry.get("contributing_runs", ())), "flags": entry.get("flags", {})}
        more["notes"] = {int(run): note for run, note in entry.get("notes", {}).items()}
        found.append(SimpleNamespace(**asdict(result), **more))
    return found
