#include "ReferenceScoreDynamicsKernels.h"
#include "openmm/KernelFactory.h"
#include "openmm/OpenMMException.h"
#include "openmm/internal/windowsExport.h"
#include "openmm/reference/ReferencePlatform.h"

using namespace OpenMM;
using namespace ScoreDynamicsPlugin;

namespace {

class Factory : public KernelFactory {
public:
    KernelImpl* createKernelImpl(std::string name, const Platform& platform,
                                 ContextImpl&) const override {
        if (name == CalcScoreDynamicsForceKernel::Name())
            return new ReferenceCalcScoreDynamicsForceKernel(name, platform);
        throw OpenMMException("ScoreDynamics: there is no kernel called " + name);
    }
};

} // namespace

extern "C" OPENMM_SD_EXPORT void registerPlatforms() {
}

extern "C" OPENMM_SD_EXPORT void registerKernelFactories() {
    // The CPU platform is a Reference platform too.
    for (int i = 0; i < Platform::getNumPlatforms(); i++) {
        Platform& platform = Platform::getPlatform(i);
        if (dynamic_cast<ReferencePlatform*>(&platform) != nullptr)
            platform.registerKernelFactory(CalcScoreDynamicsForceKernel::Name(), new Factory());
    }
}
