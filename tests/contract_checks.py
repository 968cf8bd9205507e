"""The contract of propagators, as the tests of each shipped network ask for it."""

import warnings

from openmm_sd.propagator.contract import check_propagator


def assert_contract_kept(model, frames):
    """Fail unless a network keeps the contract, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        report = check_propagator(model, frames)
    report.raise_on_failure()
    assert report["rotation"].detail.startswith("pathwise"), report
    # Chirality must survive: a kernel that also commuted with reflections could not keep it.
    assert report["tells mirror images apart"].passed, report
    assert report["scriptable"].passed, report
