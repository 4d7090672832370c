"""Lists of contributing runs in a configuration: the user's own, which always win, and those that a job selected."""

from __future__ import annotations

import hashlib
import json
import logging

from dask_bkg import selection
from dask_bkg.config import Config
from dask_bkg.selection.lists import own_lists
from dask_bkg.settings import shape_settings

log = logging.getLogger(__name__)


def lists_by_hand(config: Config) -> dict[int, list[int]]:
    """The lists of ``bkg_runlist`` that count: what the user wrote, and what a job selected by the same settings.

    A list that a job has selected is marked in ``bkg_runlist_digest``; where the settings have changed since, it is
    left out, with a warning, and the selection is made anew.
    """
    settings = config.background_selection
    own, lists = own_lists(settings), dict(settings.bkg_runlist or {})
    if len(own) == len(lists):
        return own
    if (settings.bkg_runlist_digest or {}).get("settings") != selection_mark(config):
        log.warning(
            "background_selection: the settings have changed since bkg_runlist was selected: the selection of %d "
            "runs is made anew (take bkg_runlist_digest out to keep the lists)",
            len(lists) - len(own),
        )
        return own
    # a list has no weights: where there are any, the same settings give the same selection again, with them
    return own if selection.weighs(settings) else lists


def selection_mark(config: Config) -> str:
    """Mark of all settings that decide which runs contribute: cuts and ranking, and what shapes are made of."""
    deciding = {
        "selection": selection.selection_digest(config.background_selection),
        "shapes": shape_settings(config)._asdict(),
        "binning": config.binning.model_dump(),
        "exposure": config.model.exposure,
        "exclusion": config.exclusion.model_dump(),
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]
