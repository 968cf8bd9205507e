#include "ScoreDynamicsForceProxy.h"
#include "Base64.h"
#include "ScoreDynamicsForce.h"
#include "openmm/OpenMMException.h"
#include "openmm/serialization/SerializationNode.h"
#include <memory>

using namespace OpenMM;
using namespace ScoreDynamicsPlugin;

namespace {

constexpr int VERSION = 1;

// Proxies are registered as soon as the library is loaded, as OpenMM's own are.
__attribute__((constructor)) void registerProxies() {
    static const ScoreDynamicsForceProxy proxy;
    SerializationProxy::registerProxy(typeid(ScoreDynamicsForce), &proxy);
}

} // namespace

ScoreDynamicsForceProxy::ScoreDynamicsForceProxy() : SerializationProxy("ScoreDynamicsForce") {
}

void ScoreDynamicsForceProxy::serialize(const void* object, SerializationNode& node) const {
    const auto& force = *static_cast<const ScoreDynamicsForce*>(object);
    node.setIntProperty("version", VERSION);
    node.setIntProperty("forceGroup", force.getForceGroup());
    node.setStringProperty("name", force.getName());
    node.setBoolProperty("usesPeriodic", force.usesPeriodicBoundaryConditions());
    node.setStringProperty("module", toBase64(force.getModule()));
    SerializationNode& particles = node.createChildNode("Particles");
    for (int particle : force.getParticles())
        particles.createChildNode("Particle").setIntProperty("index", particle);
}

void* ScoreDynamicsForceProxy::deserialize(const SerializationNode& node) const {
    const int version = node.getIntProperty("version");
    if (version != VERSION)
        throw OpenMMException("ScoreDynamicsForce: version " + std::to_string(version) +
                              " of its XML is unknown; this plugin reads version " +
                              std::to_string(VERSION));
    std::vector<int> particles;
    for (const SerializationNode& particle : node.getChildNode("Particles").getChildren())
        particles.push_back(particle.getIntProperty("index"));
    auto force = std::make_unique<ScoreDynamicsForce>(fromBase64(node.getStringProperty("module")),
                                                      std::move(particles));
    force->setForceGroup(node.getIntProperty("forceGroup"));
    force->setName(node.getStringProperty("name"));
    force->setUsesPeriodicBoundaryConditions(node.getBoolProperty("usesPeriodic"));
    return force.release();
}
