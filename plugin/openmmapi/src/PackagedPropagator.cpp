// A propagator that AOTInductor has compiled, as a class of TorchScript's: so the module of a jump,
// with its noise, its tries and its gates, stays the same and only calls another network.

#include <ATen/ops/cat.h>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/custom_class.h>
#include <unistd.h>
#include <vector>

namespace {

/** A file with the given bytes while it is in scope. */
class TemporaryFile {
public:
    explicit TemporaryFile(const at::Tensor& bytes) {
        const char* directory = std::getenv("TMPDIR");
        path = std::string(directory != nullptr ? directory : "/tmp") + "/openmm-sd-XXXXXX.pt2";
        const int handle = mkstemps(path.data(), 4);
        TORCH_CHECK(handle >= 0, "cannot write a file in ", path);
        close(handle);
        std::ofstream file(path, std::ios::binary);
        file.write(static_cast<const char*>(bytes.const_data_ptr()),
                   static_cast<std::streamsize>(bytes.numel()));
        file.close();
        if (!file) {
            unlink(path.c_str());
            TORCH_CHECK(false, "cannot write ", path, ": is the disk full?");
        }
    }
    ~TemporaryFile() {
        unlink(path.c_str());
    }
    TemporaryFile(const TemporaryFile&) = delete;
    TemporaryFile& operator=(const TemporaryFile&) = delete;
    std::string path;
};

class PackagedPropagator : public torch::CustomClassHolder {
public:
    explicit PackagedPropagator(at::Tensor bytes)
        : bytes(bytes.to(at::kCPU, at::kByte).contiguous().clone()) {
        const TemporaryFile file(this->bytes);
        loader = std::make_unique<torch::inductor::AOTIModelPackageLoader>(file.path);
        const auto metadata = loader->get_metadata();
        const auto found = metadata.find("AOTI_DEVICE_KEY");
        device = found == metadata.end() ? "cpu" : found->second;
    }
    at::Tensor run(const at::Tensor& frames, const at::Tensor& lags, const at::Tensor& noise) {
        const c10::Device there(device);
        std::vector<at::Tensor> moved;
        // The package is compiled for one frame: that keeps its shapes fixed, and jumps nearly
        // always draw one candidate.
        for (int64_t k = 0; k < frames.size(0); k++) {
            const auto one = [&](const at::Tensor& all) {
                return all.slice(0, k, k + 1).to(there).contiguous();
            };
            moved.push_back(loader->run({one(frames), one(lags), one(noise)}).at(0));
        }
        return at::cat(moved).to(frames.device());
    }
    at::Tensor bytes;
private:
    std::unique_ptr<torch::inductor::AOTIModelPackageLoader> loader;
    std::string device;
};

TORCH_LIBRARY(openmm_sd, library) {
    library.class_<PackagedPropagator>("PackagedPropagator")
        .def(torch::init<at::Tensor>())
        .def("run", &PackagedPropagator::run)
        .def_pickle(
            [](const c10::intrusive_ptr<PackagedPropagator>& self) { return self->bytes; },
            [](at::Tensor bytes) { return c10::make_intrusive<PackagedPropagator>(bytes); });
}

} // namespace
