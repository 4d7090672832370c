"""From the stacked histograms of contributing runs to the rate of a background, and its error.

In: by role (``spectrum``, ``shape``, ``night``, ``field``, ``own``) counts and exposure of a target's contributing
runs, shape ``(energy, offset)`` [s TeV sr], or ``(energy, fov_lat, fov_lon)``.  Out: node values of the background
rate [s-1 TeV-1 sr-1] on the same axes, with flags and relative errors.  All modules take and return plain arrays:
energies TeV, angles deg, times s; axes ``energy``, then ``offset``.

The eight steps of the default model, and where each is:

1. *Counts.*  For run j, energy bin k and offset bin o: events n_jko outside of the exclusion regions, and exposure
   x_jko = ontime x energy width x exposed solid angle, both through the same field pixels (`dask_bkg.reduction`).
2. *Threshold.*  E_th of a run is the energy where its effective area at 0.5 deg first reaches 10 % of the maximum
   (`dask_bkg.dl3.effective_area`).
3. *Runs of the spectrum.*  Weights w_j = exp(-d^2 / 2) with d^2 = (d cos z / 0.05)^2 + (d ln E_th / 0.10)^2 +
   (d ln mu / 0.07)^2, mu the muon efficiency, until 10 weighted hours; all widths grow by 5 % until
   (sum w)^2 / sum w^2 >= 3 (`dask_bkg.selection.ranking`, `dask_bkg.selection.selections`).
4. *Runs of the shape.*  The same with a kernel twice as wide, (d cos z / 0.10)^2 + (d ln E_th / 0.20)^2, until 50
   weighted hours (`dask_bkg.selection.roles`).  Shape S_ko: the rate over offset, pooled with neighbours in ln E just
   far enough for 500 counts (`fill`), smoothed over 0.2 deg (`smooth`).
5. *Spectrum.*  a_k = sum_j w_j n_jk / sum_jo w_j x_jko S_ko, and the rate r_ko = a_k S_ko (`estimate`); empty bins
   take their share from their neighbours, energies above the last counts follow E^-2.7 (`fill`).
6. *Normalisation of the night.*  All rates times (N / M)^(q / (q + 1)): N the counts of the runs of the same and the
   neighbouring nights, M what the rate expects of them, q the sum of their weights w_j exp(-|dt| / 1 day) (`model`).
7. *Field.*  For 3D, B(E, x, y) = r(E, R) exp(sin z b(E) t), t degrees towards the zenith; b(E) by Poisson likelihood
   of the pixels' counts given those of each energy and offset bin (`field`, `field_shapes`), turned to the sky where
   the background is aligned with it (`field_rotation`).
8. *Node values.*  Scaled so that gammapy's interpolation between bin centres, integrated over the bins, gives the
   counts back (`nodes`, `field_geometry`).

The statistical error is propagated through all steps (`variance`).  `stack` adds up runs, `target` describes the run
that receives the background, `model` combines the steps, `irf` converts the result to gammapy objects; `own_counts`
may correct a background by the run's own counts, and `spline` is another way to smooth.

Sources: steps 3 to 7 follow kernel regression in the observing conditions and Mohrmann et al. (2019, A&A 632, A72)
for the use of runs without sources; the widths were measured on H.E.S.S. DL3 DR1, each run predicted by the others.

What step 7 adds, on the 72 public runs, in 1e-3 nats an event of the Poisson likelihood after one factor a run, over
the radial rate of the same stack (`below`: from 1.6 times below the threshold; errors by a paired bootstrap over
objects, differences between the columns are accurate to 0.1):

===========================  ============  ========  ========
contributing runs            ``gradient``  ``free``  ``both``
===========================  ============  ========  ========
``conditions``, own run out  +2.1 +- 0.7   +1.9      +2.1
the same, `below`            +4.0          +4.0      +4.4
no run of the same object    +1.8 +- 0.6   +1.4      +1.7
4/5 of the own events        +2.0          +1.9      +2.2
5 % of them (360 events)     +0.8          -0.3      +0.7
===========================  ============  ========  ========

A gradient whose b is linear in ln E through three energies scores +0.9, +0.9 and +0.5 in the first three rows: it
describes events above each run's threshold, but a stack contains the others as well.
"""
