#include "ScoreDynamicsForceProxy.h"
#include "Base64.h"
#include "ScoreDynamicsForce.h"
#include "internal/ModuleParts.h"
#include "openmm/OpenMMException.h"
#include "openmm/serialization/SerializationNode.h"
#include <memory>

using namespace OpenMM;
using namespace ScoreDynamicsPlugin;

namespace {

// 1 holds the module, 2 its parts.
constexpr int VERSION = 2;

// Proxies are registered as soon as the library is loaded, as OpenMM's own are.
__attribute__((constructor)) void registerProxies() {
    static const ScoreDynamicsForceProxy proxy;
    SerializationProxy::registerProxy(typeid(ScoreDynamicsForce), &proxy);
}

std::shared_ptr<const ModuleParts> readParts(const SerializationNode& node, int version) {
    if (version == 1)
        return std::make_shared<const ModuleParts>(fromBase64(node.getStringProperty("module")));
    std::vector<ModulePart> parts;
    for (const SerializationNode& child : node.getChildNode("Module").getChildren()) {
        ModulePart part;
        if (child.hasProperty("bytes"))
            part.bytes = fromBase64(child.getStringProperty("bytes"));
        else {
            part.offset = child.getLongProperty("offset");
            part.length = child.getLongProperty("length");
            part.widened = child.getBoolProperty("widened");
        }
        parts.push_back(std::move(part));
    }
    return std::make_shared<const ModuleParts>(node.getStringProperty("file"),
                                               node.getStringProperty("sha256"), std::move(parts));
}

} // namespace

ScoreDynamicsForceProxy::ScoreDynamicsForceProxy() : SerializationProxy("ScoreDynamicsForce") {
}

void ScoreDynamicsForceProxy::serialize(const void* object, SerializationNode& node) const {
    const auto& force = *static_cast<const ScoreDynamicsForce*>(object);
    const ModuleParts& module = force.getModuleParts();
    node.setIntProperty("version", module.getParts().empty() ? 1 : VERSION);
    node.setIntProperty("forceGroup", force.getForceGroup());
    node.setStringProperty("name", force.getName());
    node.setBoolProperty("usesPeriodic", force.usesPeriodicBoundaryConditions());
    if (module.getParts().empty())
        node.setStringProperty("module", toBase64(module.getModule()));
    else {
        node.setStringProperty("file", module.getFile());
        node.setStringProperty("sha256", module.getDigest());
        SerializationNode& parts = node.createChildNode("Module");
        for (const ModulePart& part : module.getParts()) {
            SerializationNode& child = parts.createChildNode("Part");
            if (!part.bytes.empty())
                child.setStringProperty("bytes", toBase64(part.bytes));
            else
                child.setLongProperty("offset", part.offset)
                    .setLongProperty("length", part.length)
                    .setBoolProperty("widened", part.widened);
        }
    }
    SerializationNode& particles = node.createChildNode("Particles");
    for (int particle : force.getParticles())
        particles.createChildNode("Particle").setIntProperty("index", particle);
}

void* ScoreDynamicsForceProxy::deserialize(const SerializationNode& node) const {
    const int version = node.getIntProperty("version");
    if (version < 1 || version > VERSION)
        throw OpenMMException("ScoreDynamicsForce: version " + std::to_string(version) +
                              " of its XML is unknown; this plugin reads versions 1 to " +
                              std::to_string(VERSION));
    std::vector<int> particles;
    for (const SerializationNode& particle : node.getChildNode("Particles").getChildren())
        particles.push_back(particle.getIntProperty("index"));
    auto force = std::make_unique<ScoreDynamicsForce>(readParts(node, version), std::move(particles));
    force->setForceGroup(node.getIntProperty("forceGroup"));
    force->setName(node.getStringProperty("name"));
    force->setUsesPeriodicBoundaryConditions(node.getBoolProperty("usesPeriodic"));
    return force.release();
}
