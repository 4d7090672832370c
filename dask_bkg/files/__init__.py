"""Files that several jobs share: written whole or not at all, changed by one job at a time.

In: paths, and bytes or what a library writes to a path.  Out: complete files and directories (`atomic_path`,
`atomic_directory`), and a lock that a killed job does not keep (`Lock`, `locked`).
"""

from dask_bkg.files.lock import Lock, locked
from dask_bkg.files.write import atomic_directory, atomic_path, inside, remove_leftovers, write_error, write_pieces

__all__ = [
    "Lock",
    "atomic_directory",
    "atomic_path",
    "inside",
    "locked",
    "remove_leftovers",
    "write_error",
    "write_pieces",
]
