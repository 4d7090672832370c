"""The configuration of a job: read, translated, completed with a preset, validated once as a whole.

A YAML file or a mapping goes in, a `Config` comes out: `yaml` reads plain values, `gammapy_tools` translates the keys
of gammapy-tools, `presets` gives defaults, `models` holds every option with its unit and meaning, and `values`
converts each value.  `parse` does these steps; its error lists everything that is wrong, in words.
"""

from dask_bkg.config.models import BackgroundSelection, Config, Slurm
from dask_bkg.config.parse import load_config, parse_config

__all__ = ["BackgroundSelection", "Config", "Slurm", "load_config", "parse_config"]
