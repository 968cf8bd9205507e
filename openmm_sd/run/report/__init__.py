"""The report of a mixed run: what was found, and whether to believe it."""
