"""From the histograms of a field of view to a rate over the field: the radial rate times a modulation.

An acceptance is not a circle: it tilts towards the zenith, it has spots, and two telescopes stretch it.  The radial
rate (`dask_bkg.background.estimate`) has the statistics of whole rings; what the pixels tell is only how they differ
from it.  So the mean over angle of the rate that is made here is the radial one, of the same runs.

Pure arrays: energies TeV, angles deg, exposure s TeV sr, rates s-1 TeV-1 sr-1; axes ``energy``, then ``ring`` (of
offset) or ``fov_lat``, ``fov_lon``.  Stacks of several runs are ALTAZ: ``fov_lat`` is the component towards the
zenith.  `turn_to_radec` makes a RADEC rate of the finished one.

Measured on the 72 runs of H.E.S.S. DL3 DR1: the score of ``science.md`` (norm) relative to the radial rate of the
same stack, in 1e-3 nats an event, from the threshold of each run on (`below`: from 1.6 times less).  Errors over
targets, by a paired bootstrap; the differences between the shapes are known to 0.1.

===========================  ============  ========  ========
contributing runs            ``gradient``  ``free``  ``both``
===========================  ============  ========  ========
``conditions``, without own  +2.1 +- 0.7   +1.9      +2.1
the same, `below`            +4.0          +4.0      +4.4
no run of the same target    +1.8 +- 0.6   +1.4      +1.7
4/5 of the own events        +2.0          +1.9      +2.2
5 % of them (360 events)     +0.8          -0.3      +0.7
===========================  ============  ========  ========

A gradient with b through three energies, as the recipe has it, scores +0.9, +0.9 and +0.5 in the first three: it is
made for events above each run's threshold, and a stack holds the others as well.
"""
