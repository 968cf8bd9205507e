#include "internal/JumpModule.h"
#include "openmm/OpenMMException.h"
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <sstream>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

using namespace ScoreDynamicsPlugin;
using OpenMM::OpenMMException;

struct JumpModule::Contents {
    c10::Device device;
    torch::jit::Module module;
};

namespace {

/** Run something of torch's, whose exceptions OpenMM and Python do not know. */
template <class Function>
auto inTorch(const std::string& what, Function&& function) {
    try {
        return function();
    }
    catch (const OpenMMException&) {
        throw;
    }
    catch (const c10::Error& error) {
        throw OpenMMException(what + ": " + error.what_without_backtrace());
    }
    catch (const std::exception& error) {
        throw OpenMMException(what + ": " + error.what());
    }
}

} // namespace

JumpModule::JumpModule(const std::string& bytes, c10::Device device) {
    contents = inTorch("ScoreDynamicsForce: the module cannot be loaded", [&] {
        std::istringstream stream(bytes);
        torch::jit::Module loaded = torch::jit::load(stream, device);
        loaded.eval();
        // Frozen, its weights are constants, which is faster; they have to be on their device by
        // then. A frozen module goes on pointing to functions of the copy that it was made from,
        // which is gone, and reads them when it reports an exception: written and read once more,
        // it stands on its own.
        std::stringstream again;
        torch::jit::freeze(loaded).save(again);
        return std::unique_ptr<Contents>(new Contents{device, torch::jit::load(again, device)});
    });
}

JumpModule::~JumpModule() = default;

Proposal JumpModule::operator()(const at::Tensor& positions, const double* box,
                                const JumpParameters& parameters) {
    return inTorch("ScoreDynamicsForce", [&] {
        const c10::InferenceMode guard;
        at::Tensor vectors = at::zeros({3, 3}, at::kDouble);
        if (box != nullptr)
            std::copy(box, box + 9, vectors.mutable_data_ptr<double>());
        auto answer = contents->module
                          .forward({positions, vectors.to(contents->device), parameters.number,
                                    parameters.attempt, parameters.candidates, parameters.seed,
                                    parameters.lag, parameters.novelty})
                          .toTuple();
        at::Tensor displacement = answer->elements().at(0).toTensor().to(at::kDouble).contiguous();
        if (displacement.sizes() != positions.sizes())
            throw OpenMMException("ScoreDynamicsForce: the module returned a displacement of " +
                                  std::to_string(displacement.numel()) + " numbers for " +
                                  std::to_string(positions.size(0)) + " particles");
        return Proposal{displacement, answer->elements().at(1).toTensor().item<double>()};
    });
}
