#ifndef OPENMM_SD_COMMONSCOREDYNAMICSKERNELS_H_
#define OPENMM_SD_COMMONSCOREDYNAMICSKERNELS_H_

#include "internal/JumpModule.h"
#include "internal/ScoreDynamicsKernels.h"
#include "openmm/common/ComputeArray.h"
#include "openmm/common/ComputeContext.h"
#include <memory>
#include <vector>

namespace ScoreDynamicsPlugin {

/**
 * For the platforms that compile kernels at run time. Only the solute's positions are gathered and
 * only the solute's displacements are added. Where torch sees the platform's own device both stay
 * there: OpenMM's kernels write and read torch's memory.
 */
class CommonCalcScoreDynamicsForceKernel : public CalcScoreDynamicsForceKernel {
public:
    /**
     * @param context  OpenMM's context on the device
     * @param device   torch's name for that device, or its CPU
     */
    CommonCalcScoreDynamicsForceKernel(const std::string& name, const OpenMM::Platform& platform,
                                       OpenMM::ComputeContext& context, c10::Device device)
        : CalcScoreDynamicsForceKernel(name, platform), cc(context), device(device) {
    }
    void initialize(OpenMM::ContextImpl& context, const ScoreDynamicsForce& force) override;
    double execute(OpenMM::ContextImpl& context, const JumpParameters& parameters,
                   bool includeForces) override;
private:
    class ReorderListener;
    void followReordering();
    at::Tensor gatherPositions();
    void undoWrapping(at::Tensor& gathered);
    void addDisplacement(const at::Tensor& displacement);

    OpenMM::ComputeContext& cc;
    c10::Device device;
    std::unique_ptr<JumpModule> module;
    std::vector<int> particles;
    bool periodic = false;
    OpenMM::ComputeArray places;  // of the solute's atoms in OpenMM's order, which changes
    OpenMM::ComputeArray staging;  // positions or displacements on their way, where torch is elsewhere
    at::Tensor shared;  // the same, in torch's memory, where both are on one device
    OpenMM::ComputeKernel gatherKernel, addKernel;
};

} // namespace ScoreDynamicsPlugin

#endif /*OPENMM_SD_COMMONSCOREDYNAMICSKERNELS_H_*/
