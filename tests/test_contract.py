"""The conformance check finds what is wrong with a kernel, and nothing wrong with a good one."""

import pytest
import torch

from openmm_sd import Propagator, check_propagator
from openmm_sd.propagator.kernels import Identity, OrnsteinUhlenbeck, Rotation, Shift

N = 5


class Kernel(Propagator):
    """A deterministic kernel without a fault; the others each have one."""

    def __init__(self):
        super().__init__(N, 3 * N)

    def forward(self, frame, lag, noise):
        return 0.5 * (frame + frame.mean(1, keepdim=True))


class Wrong(Kernel):
    def forward(self, frame, lag, noise):
        return frame[:, :-1]


class Double(Kernel):
    def forward(self, frame, lag, noise):
        return frame.double()


class NotFinite(Kernel):
    def forward(self, frame, lag, noise):
        return frame / 0.0


class Crash(Kernel):
    def forward(self, frame, lag, noise):
        raise RuntimeError("no such thing")


class OwnNoise(Kernel):
    def forward(self, frame, lag, noise):
        return frame + torch.randn_like(frame)


class HiddenState(Kernel):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, frame, lag, noise):
        self.count += 1
        return frame * self.count


class InPlace(Kernel):
    def forward(self, frame, lag, noise):
        frame += 1.0
        return frame


class MixesBatch(Kernel):
    def forward(self, frame, lag, noise):
        return frame + (frame - frame.mean(0, keepdim=True)) * 0.1


class FixedPlace(Kernel):
    def forward(self, frame, lag, noise):
        return 0.5 * frame


class FixedAxis(Kernel):
    def forward(self, frame, lag, noise):
        stretch = torch.tensor([1.2, 1.0, 1.0])
        centre = frame.mean(1, keepdim=True)
        return centre + (frame - centre) * stretch


class NoisyAxis(Kernel):
    """Noise along x only: rotations change its distribution."""

    def forward(self, frame, lag, noise):
        return frame + noise.reshape(-1, N, 3) * torch.tensor([0.1, 0.0, 0.0])


class NotScriptable(Kernel):
    def forward(self, frame, lag, noise):
        return torch.stack([eval("x") for x in frame])


@pytest.mark.parametrize("kernel", [Kernel(), Identity(N), OrnsteinUhlenbeck(N, 10.0, 0.1)])
def test_good_kernels_pass(kernel):
    report = check_propagator(kernel)
    assert report.passed, str(report)
    assert report["scriptable"].passed, str(report)
    report.raise_on_failure()


@pytest.mark.parametrize(
    ("kernel", "failing"),
    [
        (Wrong(), "shape"),
        (Double(), "dtype"),
        (NotFinite(), "finite"),
        (Crash(), "callable"),
        (OwnNoise(), "deterministic"),
        (HiddenState(), "no side effects"),
        (InPlace(), "no side effects"),
        (MixesBatch(), "batch consistency"),
        (FixedPlace(), "translation"),
        (FixedAxis(), "rotation"),
        (NoisyAxis(), "rotation"),
        (Rotation(N, 95.0, (1.0, 0.0, 0.0)), "rotation"),
        (Shift(N, (0.1, 0.0, 0.0)), "rotation"),
        (torch.nn.Linear(3, 3), "attributes"),
    ],
)
def test_each_fault_is_found(kernel, failing):
    report = check_propagator(kernel)
    assert failing in [check.name for check in report.failures], str(report)
    with pytest.raises(ValueError, match=failing):
        report.raise_on_failure()


def test_unscriptable_kernel_is_told_not_refused():
    report = check_propagator(NotScriptable())
    assert not report["scriptable"].passed
    assert not report["scriptable"].required


def test_distribution_test_accepts_isotropic_noise():
    report = check_propagator(OrnsteinUhlenbeck(N, 10.0, 0.1))
    assert "not pathwise" in report["rotation"].detail


def test_frames_of_the_wrong_shape():
    with pytest.raises(ValueError, match="frames must have shape"):
        check_propagator(Identity(N), torch.zeros(2, N + 1, 3))


def test_report_is_readable():
    text = str(check_propagator(FixedAxis()))
    assert "FAIL  rotation" in text
    assert "ok    shape" in text


def test_base_class_has_no_forward():
    with pytest.raises(TypeError, match="does not define forward"):
        Propagator(3, 0)(torch.zeros(1, 3, 3), torch.ones(1), torch.zeros(1, 0))


@pytest.mark.parametrize(("atoms", "noise"), [(0, 1), (3, -1)])
def test_bad_sizes(atoms, noise):
    with pytest.raises(ValueError, match="must"):
        Propagator(atoms, noise)
