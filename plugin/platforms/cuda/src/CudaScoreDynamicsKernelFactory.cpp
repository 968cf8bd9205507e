#include "CommonScoreDynamicsKernels.h"
#include "openmm/KernelFactory.h"
#include "openmm/OpenMMException.h"
#include "openmm/cuda/CudaPlatform.h"
#include "openmm/internal/ContextImpl.h"
#include <ATen/Context.h>

using namespace OpenMM;
using namespace ScoreDynamicsPlugin;

namespace {

/** Where torch runs: on the GPU of this Context, or on the CPU if this torch cannot use it. */
c10::Device torchDevice(const CudaPlatform::PlatformData& data) {
    if (!at::hasCUDA())
        return c10::kCPU;
    // Several GPUs are listed with commas; the first one keeps all positions.
    const std::string& index = data.propertyValues.at(CudaPlatform::CudaDeviceIndex());
    return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(std::stoi(index)));
}

class Factory : public KernelFactory {
public:
    KernelImpl* createKernelImpl(std::string name, const Platform& platform,
                                 ContextImpl& context) const override {
        if (name != CalcScoreDynamicsForceKernel::Name())
            throw OpenMMException("ScoreDynamics: there is no kernel called " + name);
        auto& data = *static_cast<CudaPlatform::PlatformData*>(context.getPlatformData());
        // CudaContext's header wants the CUDA toolkit's. ComputeContext is its only base class, so
        // both start at the same address.
        auto& compute = *reinterpret_cast<ComputeContext*>(data.contexts[0]);
        return new CommonCalcScoreDynamicsForceKernel(name, platform, compute, torchDevice(data));
    }
};

} // namespace

extern "C" OPENMM_SD_EXPORT void registerPlatforms() {
}

extern "C" OPENMM_SD_EXPORT void registerKernelFactories() {
    for (int i = 0; i < Platform::getNumPlatforms(); i++)
        if (Platform::getPlatform(i).getName() == "CUDA")
            Platform::getPlatform(i).registerKernelFactory(CalcScoreDynamicsForceKernel::Name(),
                                                           new Factory());
}
