#ifndef OPENMM_SD_SCOREDYNAMICSFORCE_H_
#define OPENMM_SD_SCOREDYNAMICSFORCE_H_

#include "openmm/Force.h"
#include <memory>
#include <string>
#include <vector>

#define OPENMM_SD_EXPORT __attribute__((visibility("default")))

namespace ScoreDynamicsPlugin {

class ModuleParts;

/**
 * A learned jump of a solute, as a force.
 *
 * While the context parameter openmm_sd_number is zero this force is zero and touches nothing. When
 * it is not, the force on the solute's particles is the displacement (nm) of one jump and the energy
 * is its status; all other particles get nothing. An integrator that stores this force and adds it
 * to the positions makes the jump. The force needs a force group of its own.
 *
 * What computes the displacement is a TorchScript module, the same that the project's other bridges
 * run. Its forward method takes
 *
 *   positions   Tensor (N, 3) float64, nm, the solute as OpenMM holds it, perhaps broken across the box
 *   box         Tensor (3, 3) float64, nm, the box vectors as rows, zeros without a periodic box
 *   number, attempt, candidates, seed   int
 *   lag, novelty                        float
 *
 * and returns the displacement, Tensor (N, 3) float64, nm, and the status, a Tensor of one number.
 * Noise is made inside it from seed, number and attempt, so that a run repeats on every platform.
 */
class OPENMM_SD_EXPORT ScoreDynamicsForce : public OpenMM::Force {
public:
    /** Number of the jump, counted from 1; 0 while no jump is under way. */
    static const std::string& Number() {
        static const std::string name = "openmm_sd_number";
        return name;
    }
    /** Number of the first try within the jump, from 0. */
    static const std::string& Attempt() {
        static const std::string name = "openmm_sd_try";
        return name;
    }
    /** How many tries are drawn in one batch. */
    static const std::string& Candidates() {
        static const std::string name = "openmm_sd_candidates";
        return name;
    }
    /** Seed of the run. */
    static const std::string& Seed() {
        static const std::string name = "openmm_sd_seed";
        return name;
    }
    /** Physical time that the jump covers, ps. */
    static const std::string& Lag() {
        static const std::string name = "openmm_sd_lag";
        return name;
    }
    /** Novelty of a frame above which nothing is drawn. */
    static const std::string& Novelty() {
        static const std::string name = "openmm_sd_novelty";
        return name;
    }
    /**
     * Create a force.
     *
     * @param module     the bytes of a TorchScript file
     * @param particles  system indices of the solute's atoms, in the order that the module expects
     */
    ScoreDynamicsForce(std::string module, std::vector<int> particles);
    /** Create a force from a TorchScript file. */
    static ScoreDynamicsForce fromFile(const std::string& path, std::vector<int> particles);
    /** Create a force from a module's parts. */
    ScoreDynamicsForce(std::shared_ptr<const ModuleParts> parts, std::vector<int> particles);
    /** Get the bytes of the TorchScript file. Copies of a force share them. */
    const std::string& getModule() const;
    /** Get the parts of the TorchScript file, as they are written to XML. */
    const ModuleParts& getModuleParts() const {
        return *parts;
    }
    /** Get the system indices of the solute's atoms. */
    const std::vector<int>& getParticles() const {
        return particles;
    }
    bool usesPeriodicBoundaryConditions() const override {
        return periodic;
    }
    /** Set whether the module is told the periodic box. */
    void setUsesPeriodicBoundaryConditions(bool periodic) {
        this->periodic = periodic;
    }
protected:
    OpenMM::ForceImpl* createImpl() const override;
private:
    std::shared_ptr<const ModuleParts> parts;
    std::vector<int> particles;
    bool periodic = false;
};

} // namespace ScoreDynamicsPlugin

#endif /*OPENMM_SD_SCOREDYNAMICSFORCE_H_*/
