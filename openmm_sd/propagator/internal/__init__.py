"""Propagators that move bond lengths, angles and torsions.

`tree` turns frames into internal coordinates and back; `single` is the network of one molecule,
`family` the one of many, with `family_tree`, `statistics`, `symmetry` and `torsion_potential`.
"""
