"""`dask worker --preload`: the tasks that read runs begin, and wait for the file ``$DASK_BKG_TEST_GATE``."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dask_bkg.store import update

GATE = Path(os.environ["DASK_BKG_TEST_GATE"])

# a preload may be loaded twice
original = getattr(update.update_block, "original", update.update_block)


def wait_and_update(*args):
    while not GATE.exists():
        time.sleep(0.05)
    return original(*args)


wait_and_update.original = original
# tasks are sent by their name
update.update_block = wait_and_update
