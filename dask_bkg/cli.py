"""The command line: reads a configuration, calls the job, prints what became of it.

Exit status: 0 all runs done; 1 nothing could be done; 2 wrong usage; 3 done, but some runs failed; 130 stopped by
Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from dask_bkg import __version__, terminal
from dask_bkg.errors import BackgroundError, Stopped

NOTHING_DONE, SOME_FAILED = 1, 3

MOST_ROWS, FIRST_ROWS = 200, 50
"""Runs up to which the table of a job is printed whole, and its rows that are printed otherwise."""


STOP_SECONDS = 4.0
"""Time in which a command that is stopped must have written its index."""


class _Stop:
    """Ends a command at SIGINT (Ctrl-C) and SIGTERM: first what it has done is put on record, then all ends at once.

    The second signal finds the system's own handler, which ends the process wherever it is. Local workers end with
    it, as they watch it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals; those that are ignored (``nohup``, a job in the background) stay so."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._begin)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def _begin(self, number: int, frame: Any) -> None:
        self.signal = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        # libraries that are torn down log errors, and print tracebacks of exceptions that no code catches
        logging.disable(logging.CRITICAL)
        sys.unraisablehook = lambda args: None
        threading.excepthook = lambda args: None
        # the exception may be lost (in a callback), or what follows stuck: a lock, a disk, a library
        timer = threading.Timer(STOP_SECONDS, self.end)
        timer.daemon = True
        timer.start()
        raise Stopped

    def end(self, error: BaseException | None = None) -> None:
        """Say what is done, and end; threads that compute are not waited for."""
        assert self.signal is not None
        done = "; ".join(getattr(error, "__notes__", ())) or "the runs that were read are in the run store"
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        with suppress(OSError, ValueError):
            words = f"stopped by {signal.Signals(self.signal).name}: {done}; the same command goes on from there"
            click.echo(words, err=True)
        os._exit(128 + self.signal)


class _Group(click.Group):
    """Errors of ours end the program with status 1 and their message, signals with a sentence; no traceback."""

    def main(self, *args: Any, **more: Any) -> Any:
        """Run the command; no control character of an archive reaches the terminal."""
        with terminal.plain_streams():
            return super().main(*args, **more)

    def invoke(self, ctx: click.Context):
        stop = _Stop()
        try:
            with stop.listening():
                return super().invoke(ctx)
        except BaseException as error:
            # in the middle of an import the exception of a signal may have become another one
            if stop.signal is not None:
                stop.end(error)
            if not isinstance(error, BackgroundError):
                raise
            click.echo(f"error: {error}", err=True)
            sys.exit(NOTHING_DONE)


# color: Click would else cut out what looks like a colour, instead of showing it
@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "color": True})
@click.option("-v", "--verbose", is_flag=True, help="Log progress.")
@click.version_option(__version__, prog_name="dask-bkg")
def main(verbose: bool) -> None:
    """Background models of gamma-ray telescope archives, on Dask.

    \b
    dask-bkg demo                       the whole job on a simulated archive
    dask-bkg config > config.yaml       every option, to fill in
    dask-bkg run config.yaml            the job
    dask-bkg reduce config.yaml         its first step alone: the run store
    dask-bkg info runs.zarr             what is in a run store; --check: whether all of it can be read
    dask-bkg kl config.yaml             which runs resemble which: matrix and picture
    dask-bkg cluster check config.yaml  whether a worker of its cluster can do the job
    dask-bkg validate config.yaml       how well backgrounds predict runs that they have not seen
    """  # noqa: D301
    terminal.log_to_terminal(logging.INFO if verbose else logging.WARNING, every=verbose)
    # which star table is used, and the like: few lines, and a user wants to know
    logging.getLogger("dask_bkg").setLevel(logging.INFO)
    logging.captureWarnings(True)


_FILE = click.Path(dir_okay=False, path_type=Path)
_config_file = click.argument("config_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
_where = click.option(
    "--cluster", help="threads, local, slurm, or a scheduler's address or file; wins over the configuration."
)


def _job_options(command: Callable) -> Callable:
    """The configuration of a job and where it runs: the same for all commands that read one."""
    for add in (
        click.option("--progress/--no-progress", default=True, help="Show bars."),
        click.option("--performance-report", "report", type=_FILE, help="Save Dask's report of the job, a page."),
        _where,
        _config_file,
    ):
        command = add(command)
    return command


@contextmanager
def _listing_failures(directory: Path) -> Iterator[None]:
    """List all runs of an error in a file: its message has them by kind."""
    try:
        yield
    except BackgroundError as error:
        if error.failed:
            _write_failures(directory, error.failed)
        raise


@contextmanager
def _reported(settings: Any, report: Path | None) -> Iterator[None]:
    """Save Dask's report of what is done meanwhile, if one is wanted."""
    if report is None:
        yield
        return
    from distributed import performance_report

    from dask_bkg.cluster import open_client
    from dask_bkg.errors import ConfigError

    with open_client(settings) as client:
        if client is None:
            raise ConfigError(
                "--performance-report: threads have no scheduler that could write it: take --cluster local"
            )
        report.parent.mkdir(parents=True, exist_ok=True)
        # the job finds this client active, and uses it
        with performance_report(filename=str(report)):
            yield
    click.echo(f"performance report: {report}")


def _quiet_distributed() -> None:
    """Dask logs every comm that opens and closes, and tracebacks of those that are lost; we say what is lost."""
    # distributed sets these levels when it is imported, which takes a second: where there are workers only
    from dask import config

    config.set({"logging": {"distributed": "critical", "distributed.client": "critical"}})


@main.command()
@click.option("--out-dir", default="dask-bkg-demo", show_default=True, help="Where everything goes.")
@click.option("--njobs", default=2, show_default=True, type=click.IntRange(min=1), help="Local worker processes.")
def demo(out_dir: str, njobs: int) -> None:
    """Do the whole job on a simulated archive, and compare with the truth.

    No data and no network are needed. Writes two datastores (run-wise and stacked backgrounds) and a picture.
    """
    from dask_bkg.demo import run_demo

    _quiet_distributed()
    run_demo(out_dir, njobs, click.echo)


@main.command()
@click.option(
    "--preset",
    type=click.Choice(["veritas", "gammapy-tools"]),
    help="Set this preset, and say what it stands for and how the default differs.",
)
def config(preset: str | None) -> None:
    """Print a configuration with every option, its default, unit and meaning."""
    from dask_bkg.config.yaml import template

    click.echo(template(preset), nl=False)


@main.command()
@_job_options
@click.option("--overwrite", is_flag=True, help="Copy runs to io.in_dir again that are there already.")
@click.option("--refresh", is_flag=True, help="Also write backgrounds that would come out as they are there.")
def run(
    config_file: Path, cluster: str | None, report: Path | None, overwrite: bool, refresh: bool, progress: bool
) -> None:
    """Make the background of every run that CONFIG_FILE names."""
    from dask_bkg.config.yaml import dump_yaml
    from dask_bkg.pipeline.prepare import prepare_runs
    from dask_bkg.pipeline.run import run_job
    from dask_bkg.plan import check_job

    settings = _settings(config_file, cluster)
    click.echo(f"# effective configuration\n{dump_yaml(settings.effective())}")
    check_job(settings)
    failures_dir = _failures_dir(settings)
    with _listing_failures(failures_dir):
        prepared = prepare_runs(settings, overwrite)
    with _listing_failures(failures_dir), _reported(settings, report):
        done = run_job(prepared, progress=progress, refresh=refresh)
    _tell_results(done.results)
    unchanged, written = (sum(r.status == word for r in done.results) for word in ("unchanged", "done"))
    opened = f"{done.runs_opened} event files opened, events of {done.runs_read} runs counted"
    click.echo(f"\n{opened}; {written} backgrounds written, {unchanged} unchanged")
    missing = prepared.run_selection.missing_runs
    if missing:
        more = f" and {len(missing) - MOST_ROWS} more" if len(missing) > MOST_ROWS else ""
        click.echo(f"not in the archive: {', '.join(map(str, missing[:MOST_ROWS]))}{more}", err=True)
    click.echo(f"\nprovenance, effective configuration and this table: {done.results_dir}")
    if written or not done.picture.exists():
        # not imported, and not drawn again, where it would come out as it is
        from dask_bkg.report.picture import draw_backgrounds

        draw_backgrounds(done, done.config or settings)
    if done.picture.exists():
        click.echo(f"picture: {done.picture}")
    _end({**prepared.run_selection.failed_runs, **done.failed}, failures_dir, missing)


def _tell_results(results: list) -> None:
    """The table of a job, and what is worth knowing of single backgrounds; of a large one the first lines."""
    from dask_bkg import report

    shown = results if len(results) <= MOST_ROWS else results[:FIRST_ROWS]
    click.echo(report.format_table(report.SUMMARY_HEADER, report.summary_rows(shown)))
    if len(results) > len(shown):
        click.echo(f"... all {len(results)} runs are in summary.ecsv")
    remarks = {
        result.obs_id: f"run {result.obs_id}: {result.reason}" for result in results if result.reason and result.done
    }
    if remarks:
        where = " (each in summary.ecsv)" if len(remarks) > terminal.WHOLE else ""
        click.echo("\n".join([f"\nremarks on {len(remarks)} backgrounds{where}:", *terminal.reason_lines(remarks)]))


def _settings(config_file: Path, cluster: str | None):
    """The configuration of a job, run where the command line says."""
    from dask_bkg.config import load_config

    _quiet_distributed()
    settings = load_config(config_file)
    return settings.with_cluster(cluster) if cluster else settings


def _failures_dir(settings: Any) -> Path:
    """Where a job lists its failures: with its results, or next to its run store."""
    return settings.store_path.parent if settings.io.results_dir is None else settings.directory("results_dir")


def _write_failures(directory: Path, failed: Mapping[int, str]) -> None:
    """List the failures of a job in a file, and say where if there are any."""
    from dask_bkg.report.tables import write_failures

    if (path := write_failures(directory, failed)) is not None:
        click.echo(f"\nfailures, all {len(failed)}: {path}", err=True)


def _end(failed: Mapping[int, str], failures_dir: Path, missing: Sequence[int] = ()) -> None:
    """Report runs that failed, many by kind; status `SOME_FAILED` if there are any, or some are missing."""
    _write_failures(failures_dir, failed)
    if failed:
        lines = [f"\n{len(failed)} runs could not be used:", *terminal.reason_lines(failed)]
        click.echo("\n".join(lines), err=True)
    if failed or missing:
        sys.exit(SOME_FAILED)


@main.command()
@_job_options
def reduce(config_file: Path, cluster: str | None, report: Path | None, progress: bool) -> None:
    """Bring the run store of CONFIG_FILE up to date: the runs of its archive that are new or have changed."""
    from dask_bkg.pipeline.update import reduce_archive
    from dask_bkg.store.info import describe

    settings = _settings(config_file, cluster)
    failures_dir = _failures_dir(settings)
    with _listing_failures(failures_dir), _reported(settings, report):
        done = reduce_archive(settings, progress=progress)
    click.echo(f"{done.opened} event files opened, events of {done.read} runs counted\n\n{describe(done.store.path)}")
    _end(done.failed, failures_dir)


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Read all of it; status 3 if something is damaged.")
def info(store: Path, check: bool) -> None:
    """Say what is in the run store STORE.

    With --check: which runs of it are damaged, in which file, and what to do. STORE may then also be the store of
    results, backgrounds.zarr.
    """
    if not check:
        from dask_bkg.store.info import describe

        click.echo(describe(store))
        return
    from dask_bkg.store.check import check_store

    checked = check_store(store)
    click.echo(str(checked))
    if not checked.is_whole:
        sys.exit(SOME_FAILED)


@main.command()
@_job_options
def kl(config_file: Path, cluster: str | None, report: Path | None, progress: bool) -> None:
    """Kullback-Leibler divergence of every run of the archive from every other: kl.zarr and kl.png in results_dir."""
    from dask_bkg.pipeline.kl import write_matrix
    from dask_bkg.report import plot_kl_matrix
    from dask_bkg.report.matrix import sample

    settings = _settings(config_file, cluster)
    failures_dir = _failures_dir(settings)
    with _listing_failures(failures_dir), _reported(settings, report):
        done = write_matrix(settings, progress=progress)
    picture = done.path.with_suffix(".png")
    some = sample(done.path)
    plot_kl_matrix(picture, some.values, some.obs_id.values, zenith=some.zenith.values)
    click.echo(f"matrix:  {done.path}\npicture: {picture}")
    _end(done.failed, failures_dir)


@main.group()
def cluster() -> None:
    """Where a job runs: try it, and start one by hand."""


@cluster.command()
@_where
@_config_file
def check(config_file: Path, cluster: str | None) -> None:
    """Look whether a worker of the cluster of CONFIG_FILE can do its job.

    Starts one worker (`slurm`: submits one job, and prints its script), compares its versions with those here, and
    tries whether it sees the archive and can write to the output.
    """
    from dask_bkg.cluster import open_client, slurm
    from dask_bkg.cluster.check import check_worker, one_worker

    settings = one_worker(_settings(config_file, cluster))
    if settings.cluster == "slurm":
        click.echo(f"# the script of a job\n{slurm.job_script(settings)}")
    with open_client(settings) as client:
        if client is None:
            click.echo("cluster: threads: the work is done in this process, there is nothing to check")
            return
        findings = check_worker(client, settings)
    click.echo("\n".join(map(str, findings)))
    if not all(finding.right for finding in findings):
        sys.exit(NOTHING_DONE)


@cluster.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def certificate(directory: Path) -> None:
    """Write a temporary TLS certificate into DIRECTORY, and print what lets Dask take it.

    \b
    eval "$(dask-bkg cluster certificate DIRECTORY)"
    dask scheduler --protocol tls
    """  # noqa: D301
    from dask_bkg.cluster.certificate import environment_of, write_certificate

    click.echo(environment_of(write_certificate(directory)), nl=False)


@main.command()
@_job_options
@click.option(
    "--against",
    type=click.Path(exists=True, path_type=Path),
    help="Compare with another configuration, or with the backgrounds in the files of a datastore.",
)
@click.option("--folds", type=click.IntRange(min=2), help="Leave out every n-th run at a time, not one run.")
@click.option("--same-target-out", is_flag=True, help="Leave out all runs of the same target.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Where the results go.")
def validate(
    config_file: Path,
    cluster: str | None,
    report: Path | None,
    progress: bool,
    against: Path | None,
    folds: int | None,
    same_target_out: bool,
    out: Path | None,
) -> None:
    """Tell how well the backgrounds of CONFIG_FILE predict the counts of runs that have not contributed to them.

    Writes numbers (validation.json), a table of the runs (validation.ecsv) and a page with pictures
    (validation.html) to --out, by default io.results_dir/validation.
    """
    from dask_bkg.config import load_config
    from dask_bkg.report.validation_files import write_validation
    from dask_bkg.validation.run import validate as validate_job

    settings = _settings(config_file, cluster)
    directory = out or settings.directory("results_dir") / "validation"
    other = load_config(against) if against is not None and against.is_file() else against
    options: dict[str, Any] = {"folds": folds, "same_target_out": same_target_out, "progress": progress}
    with _listing_failures(directory), _reported(settings, report):
        done = validate_job(settings, other, **options)
    done.name = config_file.stem
    if done.against is not None and against is not None:
        name = against.stem if against.is_file() else against.resolve().name
        done.against.name = name if name != done.name else f"{against.parent.name}/{name}"
    click.echo(write_validation(done, directory))
    click.echo(f"\npage: {directory / 'validation.html'}")
    _end({**(done.against.failed if done.against else {}), **done.failed}, directory)


@main.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--runs", default=20, show_default=True, type=click.IntRange(min=1), help="Number of runs.")
@click.option(
    "--events", default=10_000, show_default=True, type=click.IntRange(min=1), help="Events of a nominal run."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Same seed, same bytes.")
@click.option("--sources/--no-sources", default=True, help="Put gamma-ray sources on the targets.")
@click.option("--stars/--no-stars", default=True, help="Let bright stars make holes.")
@click.option(
    "--tilt", default=0.0, show_default=True, help="Gradient of ln(background) towards the zenith over sin z [1/deg]."
)
@click.option("--tilt-slope", default=0.0, show_default=True, help="Growth of the tilt with ln E [1/deg].")
@click.option(
    "--elongation",
    default=0.0,
    show_default=True,
    help="Growth of ln(background) with fov_lon^2 - fov_lat^2 [1/deg2].",
)
@click.option("--steepening", default=0.0, show_default=True, help="Growth of the spectral index with airmass.")
@click.option(
    "--mirror-threshold", default=0.0, show_default=True, help="Power of MUONEFF with which the threshold falls."
)
@click.option("--seasons", default=2, show_default=True, help="Number of seasons, one a year.")
@click.option("--nights", default=243, show_default=True, help="Nights of a season in which runs are taken.")
@click.option("--weather", default=0.0, show_default=True, help="Scatter of ln(background) from night to night.")
@click.option("--overwrite", is_flag=True, help="Replace a simulated archive that is there.")
def simulate(directory: Path, runs: int, events: int, overwrite: bool, **sky: Any) -> None:
    """Write a DL3 archive with a known background into DIRECTORY (truth in truth.json)."""
    from dask_bkg.simulate import simulate_archive

    simulate_archive(directory, runs, events, overwrite=overwrite, **sky)
    click.echo(f"{runs} runs in {directory}; the true background is in {directory / 'truth.json'}")
