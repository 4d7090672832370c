"""The errors that a user can meet; each message has what is wrong, what is accepted, what was found, and a remedy."""

from collections.abc import Mapping


class BackgroundError(Exception):
    """Base of all errors that ``dask_bkg`` raises by itself.

    Parameters
    ----------
    failed
        The runs that it is about, ``{obs_id: reason}``.
    """

    def __init__(self, *args: object, failed: Mapping[int, str] | None = None) -> None:
        super().__init__(*args)
        self.failed = dict(failed or {})


class ConfigError(BackgroundError, ValueError):
    """The configuration cannot be used."""


class ArchiveError(BackgroundError):
    """A datastore (directory or index files) cannot be read or written."""


class StoreBusyError(ArchiveError):
    """Another job holds the lock of the run store or of a directory."""


class LostClusterError(BackgroundError):
    """The scheduler of a job has ended, or there is no worker any more."""


class Stopped(KeyboardInterrupt):
    """A signal has asked the command to end; no `except Exception` takes it for a fault of a run.

    Its notes say what has been done by then.
    """


class RunError(BackgroundError):
    """One run cannot be used; the others can."""
