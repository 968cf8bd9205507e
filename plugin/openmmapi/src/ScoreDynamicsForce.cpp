#include "ScoreDynamicsForce.h"
#include "internal/ScoreDynamicsForceImpl.h"
#include "openmm/OpenMMException.h"
#include <fstream>
#include <iterator>
#include <utility>

using namespace ScoreDynamicsPlugin;

ScoreDynamicsForce::ScoreDynamicsForce(std::string module, std::vector<int> particles)
    : module(std::make_shared<const std::string>(std::move(module))), particles(std::move(particles)) {
    setName("ScoreDynamicsForce");
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
