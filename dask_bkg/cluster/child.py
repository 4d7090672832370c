"""A scheduler or a worker of a local cluster: a script that `dask_bkg.cluster.local` starts, with its order on stdin.

The order has the keys of the connections: they are in no file and on no command line, where others could read them.
Stdin stays open until the process that gave the order ends, even if it is killed.

Dask is imported in a function: that takes seconds on a busy machine, and a starter that ends meanwhile must be seen.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
from typing import Any


def main() -> None:
    """Take the order, and serve until the process that gave it ends."""
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):  # it has ended already
        return
    threading.Thread(target=_end_with_starter, daemon=True).start()
    order = json.loads(line)
    sys.path[:] = order["path"]
    asyncio.run(_serve(order))


def _end_with_starter() -> None:
    """Kill this process and the worker of a nanny, which is in the same group, when stdin is closed."""
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGKILL)


async def _serve(order: dict[str, Any]) -> None:
    from distributed import Nanny, Scheduler
    from distributed.security import Security

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # the import has set another one
    security = Security(require_encryption=True, **order["keys"])
    if order["scheduler"] is not None:
        async with Nanny(order["scheduler"], security=security, **order["options"]) as nanny:
            await nanny.finished()
        return
    async with Scheduler(security=security, **order["options"]) as scheduler:
        print(scheduler.address, flush=True)
        # the address was the last thing that is read from the pipe
        os.dup2(2, 1)
        await scheduler.finished()


if __name__ == "__main__":
    main()
