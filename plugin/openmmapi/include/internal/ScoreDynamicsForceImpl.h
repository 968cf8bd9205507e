#ifndef OPENMM_SD_SCOREDYNAMICSFORCEIMPL_H_
#define OPENMM_SD_SCOREDYNAMICSFORCEIMPL_H_

#include "ScoreDynamicsForce.h"
#include "openmm/Kernel.h"
#include "openmm/internal/ForceImpl.h"
#include <map>
#include <string>
#include <vector>

namespace ScoreDynamicsPlugin {

/** The part of a ScoreDynamicsForce that belongs to one Context. */
class ScoreDynamicsForceImpl : public OpenMM::ForceImpl {
public:
    explicit ScoreDynamicsForceImpl(const ScoreDynamicsForce& owner);
    void initialize(OpenMM::ContextImpl& context) override;
    const ScoreDynamicsForce& getOwner() const override {
        return owner;
    }
    void updateContextState(OpenMM::ContextImpl&, bool&) override {
    }
    double calcForcesAndEnergy(OpenMM::ContextImpl& context, bool includeForces, bool includeEnergy,
                               int groups) override;
    std::map<std::string, double> getDefaultParameters() override;
    std::vector<std::string> getKernelNames() override;
private:
    const ScoreDynamicsForce& owner;
    OpenMM::Kernel kernel;
};

} // namespace ScoreDynamicsPlugin

#endif /*OPENMM_SD_SCOREDYNAMICSFORCEIMPL_H_*/
