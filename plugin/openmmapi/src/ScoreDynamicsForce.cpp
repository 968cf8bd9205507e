#include "ScoreDynamicsForce.h"
#include "internal/ModuleParts.h"
#include "internal/ScoreDynamicsForceImpl.h"
#include "openmm/OpenMMException.h"
#include <fstream>
#include <iterator>
#include <utility>

using namespace ScoreDynamicsPlugin;

ScoreDynamicsForce::ScoreDynamicsForce(std::string module, std::vector<int> particles)
    : ScoreDynamicsForce(std::make_shared<const ModuleParts>(std::move(module)), std::move(particles)) {
}

ScoreDynamicsForce::ScoreDynamicsForce(std::shared_ptr<const ModuleParts> parts,
                                       std::vector<int> particles)
    : parts(std::move(parts)), particles(std::move(particles)) {
    setName("ScoreDynamicsForce");
}

const std::string& ScoreDynamicsForce::getModule() const {
    return parts->getModule();
}

ScoreDynamicsForce ScoreDynamicsForce::fromFile(const std::string& path, std::vector<int> particles) {
    std::ifstream file(path, std::ios::binary);
    if (!file)
        throw OpenMM::OpenMMException("ScoreDynamicsForce: cannot read " + path);
    std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    return ScoreDynamicsForce(std::move(bytes), std::move(particles));
}

OpenMM::ForceImpl* ScoreDynamicsForce::createImpl() const {
    return new ScoreDynamicsForceImpl(*this);
}
