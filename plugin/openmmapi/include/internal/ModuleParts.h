#ifndef OPENMM_SD_MODULEPARTS_H_
#define OPENMM_SD_MODULEPARTS_H_

#include <memory>
#include <string>
#include <vector>

namespace ScoreDynamicsPlugin {

/** A stretch of a module's bytes: given, or read from the model's file. */
struct ModulePart {
    std::string bytes;        // empty if it stands in the file
    long long offset = 0;     // in the file
    long long length = 0;     // in the file
    bool widened = false;     // numbers of 16 bits in the file, of 32 in the module
};

/**
 * A TorchScript file as its parts. Most of them are weights, which stand in the model's file as well,
 * so that what is written of a force is small.
 */
class ModuleParts {
public:
    /** A module that stands in no file. */
    explicit ModuleParts(std::string module);
    /**
     * Put a module together.
     *
     * @param file    the model's file; where it is not there, one of its name in a folder of the
     *                environment variable OPENMM_SD_MODELS (several with colons between them)
     * @param digest  SHA-256 of the module, lower-case hex digits
     * @param parts   in their order
     * @throws OpenMMException if no such file is there, or what is there is another model's
     */
    ModuleParts(std::string file, std::string digest, std::vector<ModulePart> parts);
    const std::string& getModule() const {
        return *module;
    }
    const std::string& getFile() const {
        return file;
    }
    const std::string& getDigest() const {
        return digest;
    }
    /** Empty if the module stands in no file. */
    const std::vector<ModulePart>& getParts() const {
        return parts;
    }
private:
    std::string file, digest;
    std::vector<ModulePart> parts;
    std::shared_ptr<const std::string> module;
};

/** SHA-256 (FIPS 180-4) as lower-case hex digits. */
std::string sha256(const std::string& bytes);

} // namespace ScoreDynamicsPlugin

#endif /*OPENMM_SD_MODULEPARTS_H_*/
