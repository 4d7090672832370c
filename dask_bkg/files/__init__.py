"""Files that several jobs share: written whole or not at all, changed by one job at a time, not read twice.

In: paths, and bytes or what a library writes to a path.  Out: complete files and directories (`atomic_write`,
`atomic_directory`), a lock that a killed job does not keep (`Lock`, `locked`), and facts that were found in files and
hold for as long as their size and time of change are the same (`StatCache`).
"""

from dask_bkg.files.lock import Lock, locked
from dask_bkg.files.stat_cache import MISSING, StatCache, State, state_of
from dask_bkg.files.write import atomic_directory, atomic_write, inside, remove_leftovers, write_error, write_pieces

__all__ = [
    "MISSING",
    "Lock",
    "StatCache",
    "State",
    "atomic_directory",
    "atomic_write",
    "inside",
    "locked",
    "remove_leftovers",
    "state_of",
    "write_error",
    "write_pieces",
]
