"""Propagators: frame, lag and noise in, the next frame out. Pure functions in torch.

What a propagator has to be is said in `contract`; `check_propagator` tests it. Each kind has a
place of its own: `cartesian` moves atoms in a local frame, `internal` moves bond lengths, angles
and torsions (of one molecule, or of a family), `kernels` have a known answer and serve tests. What
the learned ones share is in `diffusion`. `registry` finds their classes by name, `sampler` has the
noise levels and the solver, `noise` the counter-based random numbers, `alignment` the local frames.
"""
