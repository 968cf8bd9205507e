"""Facts of a molecule: atoms, bonds, handedness, torsions. Knows numpy and networkx only."""
