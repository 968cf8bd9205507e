"""Propagators that move atoms in Cartesian coordinates of a local frame."""
