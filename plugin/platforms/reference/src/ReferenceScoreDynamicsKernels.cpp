#include "ReferenceScoreDynamicsKernels.h"
#include "openmm/reference/ReferencePlatform.h"
#include <ATen/ops/empty.h>

using namespace OpenMM;
using namespace ScoreDynamicsPlugin;

void ReferenceCalcScoreDynamicsForceKernel::initialize(ContextImpl&, const ScoreDynamicsForce& force) {
    particles = force.getParticles();
    periodic = force.usesPeriodicBoundaryConditions();
    module = std::make_unique<JumpModule>(force.getModule(), c10::Device(c10::kCPU));
}

double ReferenceCalcScoreDynamicsForceKernel::execute(ContextImpl& context,
                                                      const JumpParameters& parameters,
                                                      bool includeForces) {
    auto& data = *static_cast<ReferencePlatform::PlatformData*>(context.getPlatformData());
    const std::vector<Vec3>& all = *data.positions;
    const int count = static_cast<int>(particles.size());
    at::Tensor positions = at::empty({count, 3}, at::kDouble);
    double* to = positions.mutable_data_ptr<double>();
    for (int i = 0; i < count; i++)
        for (int k = 0; k < 3; k++)
            to[3 * i + k] = all[particles[i]][k];
    Vec3 box[3];
    context.getPeriodicBoxVectors(box[0], box[1], box[2]);
    const Proposal proposal = (*module)(positions, periodic ? &box[0][0] : nullptr, parameters);
    if (includeForces) {
        std::vector<Vec3>& forces = *data.forces;
        const double* from = proposal.displacement.const_data_ptr<double>();
        for (int i = 0; i < count; i++)
            forces[particles[i]] += Vec3(from[3 * i], from[3 * i + 1], from[3 * i + 2]);
    }
    return proposal.status;
}
