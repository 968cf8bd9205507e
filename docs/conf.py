"""Sphinx configuration: ``make docs``."""

from openmm_sd import __version__

project = "openmm-sd"
author = "The openmm-sd authors"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
numpydoc_show_class_members = False
# Links to headings of other pages.
myst_heading_anchors = 3
