"""OpenMM Systems: the solute in them, force fields, boxes, prepared folders, platforms."""
