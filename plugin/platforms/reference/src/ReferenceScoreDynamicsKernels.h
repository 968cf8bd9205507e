#ifndef OPENMM_SD_REFERENCESCOREDYNAMICSKERNELS_H_
#define OPENMM_SD_REFERENCESCOREDYNAMICSKERNELS_H_

#include "internal/JumpModule.h"
#include "internal/ScoreDynamicsKernels.h"
#include <memory>
#include <vector>

namespace ScoreDynamicsPlugin {

/** For the Reference and CPU platforms, which keep positions and forces in ordinary memory. */
class ReferenceCalcScoreDynamicsForceKernel : public CalcScoreDynamicsForceKernel {
public:
    using CalcScoreDynamicsForceKernel::CalcScoreDynamicsForceKernel;
    void initialize(OpenMM::ContextImpl& context, const ScoreDynamicsForce& force) override;
    double execute(OpenMM::ContextImpl& context, const JumpParameters& parameters,
                   bool includeForces) override;
private:
    std::unique_ptr<JumpModule> module;
    std::vector<int> particles;
    bool periodic = false;
};

} // namespace ScoreDynamicsPlugin

#endif /*OPENMM_SD_REFERENCESCOREDYNAMICSKERNELS_H_*/
