"""Each step of the procedure as a lazy collection: nothing is computed here, and no arithmetic is done.

In: paths, tables of runs and settings.  Out: dask arrays and delayed values, one task a block of runs or a pair of
blocks; `layers` is the one place that knows the form of a task.

The way of the data, with the names of the tasks (the legend of the dashboard)::

    reduce-runs      a batch of event files -> counts, exposure                  `runs.reduce_runs`
    load-runs        the same from the run store, a block of runs a task         `runs.load_runs`
    shape-of-runs    shapes of a block of runs, on the archive's mean shape      `kl.kl_matrix`
    kl-divergence    a block of targets x a block of runs                        `kl.kl_matrix`
                     in a job only the candidates of such a pair are kept        `select.select_runs`
    choose-runs      the same where no divergence is wanted                      `select.select_runs`
    select-runs      the nearest of all blocks, until n hours: a tree of merges  `select.select_runs`
    stack-runs       weights x histograms of a pair of blocks: a tree of sums    `stack.stack_runs`

Blocks depend on the runs and the configuration, never on workers: sums are made in the same order everywhere, and the
rates are the same bit by bit.  Paths, numbers and edges travel, no objects that hold files.
"""
