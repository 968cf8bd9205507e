#include "internal/ScoreDynamicsForceImpl.h"
#include "internal/ScoreDynamicsKernels.h"
#include "openmm/OpenMMException.h"
#include "openmm/System.h"
#include "openmm/internal/ContextImpl.h"
#include <set>

using namespace OpenMM;
using namespace ScoreDynamicsPlugin;

ScoreDynamicsForceImpl::ScoreDynamicsForceImpl(const ScoreDynamicsForce& owner) : owner(owner) {
    forceGroup = owner.getForceGroup();
}

void ScoreDynamicsForceImpl::initialize(ContextImpl& context) {
    const std::vector<int>& particles = owner.getParticles();
    if (particles.empty())
        throw OpenMMException("ScoreDynamicsForce: it has no particles");
    const int total = context.getSystem().getNumParticles();
    std::set<int> seen;
    for (int particle : particles) {
        if (particle < 0 || particle >= total)
            throw OpenMMException("ScoreDynamicsForce: particle " + std::to_string(particle) +
                                  " is not one of the system's " + std::to_string(total));
        if (!seen.insert(particle).second)
            throw OpenMMException("ScoreDynamicsForce: particle " + std::to_string(particle) +
                                  " is named twice");
    }
    kernel = context.getPlatform().createKernel(CalcScoreDynamicsForceKernel::Name(), context);
    kernel.getAs<CalcScoreDynamicsForceKernel>().initialize(context, owner);
}

double ScoreDynamicsForceImpl::calcForcesAndEnergy(ContextImpl& context, bool includeForces,
                                                   bool includeEnergy, int groups) {
    if ((groups & (1 << forceGroup)) == 0)
        return 0.0;
    const double number = context.getParameter(ScoreDynamicsForce::Number());
    if (number == 0.0)
        return 0.0;
    const auto whole = [&](const std::string& name) {
        return static_cast<std::int64_t>(context.getParameter(name));
    };
    const JumpParameters parameters{static_cast<std::int64_t>(number) - 1,
                                    whole(ScoreDynamicsForce::Attempt()),
                                    whole(ScoreDynamicsForce::Candidates()),
                                    whole(ScoreDynamicsForce::Seed()),
                                    context.getParameter(ScoreDynamicsForce::Lag()),
                                    context.getParameter(ScoreDynamicsForce::Novelty())};
    const double status =
        kernel.getAs<CalcScoreDynamicsForceKernel>().execute(context, parameters, includeForces);
    return includeEnergy ? status : 0.0;
}

std::map<std::string, double> ScoreDynamicsForceImpl::getDefaultParameters() {
    return {{ScoreDynamicsForce::Number(), 0.0},     {ScoreDynamicsForce::Attempt(), 0.0},
            {ScoreDynamicsForce::Candidates(), 0.0}, {ScoreDynamicsForce::Seed(), 0.0},
            {ScoreDynamicsForce::Lag(), 0.0},        {ScoreDynamicsForce::Novelty(), 0.0}};
}

std::vector<std::string> ScoreDynamicsForceImpl::getKernelNames() {
    return {CalcScoreDynamicsForceKernel::Name()};
}
