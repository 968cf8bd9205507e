#ifndef OPENMM_SD_JUMPMODULE_H_
#define OPENMM_SD_JUMPMODULE_H_

#include "ScoreDynamicsKernels.h"
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <memory>
#include <string>

namespace ScoreDynamicsPlugin {

/** What the module answers. */
struct Proposal {
    at::Tensor displacement;  // (N, 3) float64, nm
    double status;
};

/** A TorchScript module, loaded once for each Context so that Contexts share nothing. */
class OPENMM_SD_EXPORT JumpModule {
public:
    /**
     * @param bytes   a TorchScript file
     * @param device  where it runs
     * @throws OpenMMException with torch's text if it cannot be loaded
     */
    JumpModule(const std::string& bytes, c10::Device device);
    ~JumpModule();
    JumpModule(const JumpModule&) = delete;
    JumpModule& operator=(const JumpModule&) = delete;
    /**
     * @param positions   (N, 3) float64, nm, on the module's device
     * @param box         nine numbers, nm, the box vectors as rows, or null without a periodic box
     * @param parameters  what else it is told
     * @throws OpenMMException with torch's text if the module fails
     */
    Proposal operator()(const at::Tensor& positions, const double* box,
                        const JumpParameters& parameters);
private:
    struct Contents;
    std::unique_ptr<Contents> contents;
};

} // namespace ScoreDynamicsPlugin

#endif /*OPENMM_SD_JUMPMODULE_H_*/
