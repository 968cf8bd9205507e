#ifndef OPENMM_SD_SCOREDYNAMICSFORCEPROXY_H_
#define OPENMM_SD_SCOREDYNAMICSFORCEPROXY_H_

#include "openmm/serialization/SerializationProxy.h"

namespace ScoreDynamicsPlugin {

/** Writes a ScoreDynamicsForce as XML and reads it, with the parts of its module. */
class ScoreDynamicsForceProxy : public OpenMM::SerializationProxy {
public:
    ScoreDynamicsForceProxy();
    void serialize(const void* object, OpenMM::SerializationNode& node) const override;
    void* deserialize(const OpenMM::SerializationNode& node) const override;
};

} // namespace ScoreDynamicsPlugin

#endif /*OPENMM_SD_SCOREDYNAMICSFORCEPROXY_H_*/
