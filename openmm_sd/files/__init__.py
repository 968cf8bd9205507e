"""Files on disk that survive a kill: atomic writes, folders that are locked, trajectory formats.

Knows no chemistry and no torch.
"""
