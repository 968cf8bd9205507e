#ifndef OPENMM_SD_SCOREDYNAMICSKERNELS_H_
#define OPENMM_SD_SCOREDYNAMICSKERNELS_H_

#include "ScoreDynamicsForce.h"
#include "openmm/KernelImpl.h"
#include "openmm/Platform.h"
#include "openmm/internal/ContextImpl.h"
#include <cstdint>
#include <string>

namespace ScoreDynamicsPlugin {

/** What one call of the module is told, beside positions and box. */
struct JumpParameters {
    std::int64_t number;  // from 0
    std::int64_t attempt;
    std::int64_t candidates;
    std::int64_t seed;
    double lag;  // ps
    double novelty;
};

/** What a platform has to do: hand the solute's positions to the module, and bring back its answer. */
class CalcScoreDynamicsForceKernel : public OpenMM::KernelImpl {
public:
    static std::string Name() {
        return "CalcScoreDynamicsForce";
    }
    CalcScoreDynamicsForceKernel(const std::string& name, const OpenMM::Platform& platform)
        : OpenMM::KernelImpl(name, platform) {
    }
    virtual void initialize(OpenMM::ContextImpl& context, const ScoreDynamicsForce& force) = 0;
    /** Make one jump; called only while one is under way. Returns the status. */
    virtual double execute(OpenMM::ContextImpl& context, const JumpParameters& parameters,
                           bool includeForces) = 0;
};

} // namespace ScoreDynamicsPlugin

#endif /*OPENMM_SD_SCOREDYNAMICSKERNELS_H_*/
