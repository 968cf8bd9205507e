"""The pages that commands write: one HTML file each that opens without a network.

`openmm_sd.report.page` holds the page and its tables, `openmm_sd.report.drawing` the pictures and
`openmm_sd.report.viewer` the moving molecule. What is on a page is decided by the stage that writes
it: `openmm_sd.validate` and `openmm_sd.run`.
"""

from ..lazy import callable_package

callable_package(__name__)
