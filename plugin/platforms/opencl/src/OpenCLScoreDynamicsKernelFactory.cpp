#include "CommonScoreDynamicsKernels.h"
#include "openmm/KernelFactory.h"
#include "openmm/OpenMMException.h"
#include "openmm/internal/ContextImpl.h"
#include "openmm/opencl/OpenCLPlatform.h"

using namespace OpenMM;
using namespace ScoreDynamicsPlugin;

namespace {

class Factory : public KernelFactory {
public:
    KernelImpl* createKernelImpl(std::string name, const Platform& platform,
                                 ContextImpl& context) const override {
        if (name != CalcScoreDynamicsForceKernel::Name())
            throw OpenMMException("ScoreDynamics: there is no kernel called " + name);
        auto& data = *static_cast<OpenCLPlatform::PlatformData*>(context.getPlatformData());
        // OpenCLContext's header wants OpenCL's own, which few machines have. ComputeContext is its
        // only base class, so both start at the same address.
        auto& compute = *reinterpret_cast<ComputeContext*>(data.contexts[0]);
        // Torch has no OpenCL.
        return new CommonCalcScoreDynamicsForceKernel(name, platform, compute, c10::kCPU);
    }
};

} // namespace

extern "C" OPENMM_SD_EXPORT void registerPlatforms() {
}

extern "C" OPENMM_SD_EXPORT void registerKernelFactories() {
    for (int i = 0; i < Platform::getNumPlatforms(); i++)
        if (Platform::getPlatform(i).getName() == "OpenCL")
            Platform::getPlatform(i).registerKernelFactory(CalcScoreDynamicsForceKernel::Name(),
                                                           new Factory());
}
