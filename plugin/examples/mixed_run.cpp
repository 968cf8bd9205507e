// A mixed run without Python: bursts of Langevin dynamics, and learned jumps in between.
//
//     mixed_run SYSTEM.xml STATE.xml PLUGINS PLATFORM JUMPS BURST_STEPS LAG_PS SEED END.xml
//
// SYSTEM.xml is a System that holds a ScoreDynamicsForce in a force group of its own, as
// ScoreDynamicsIntegrator(model, bridge="native").attach(system, topology) leaves it, written with
// XmlSerializer; STATE.xml a State of it with positions. PLUGINS are folders with OpenMM's platforms
// and with the plugin's kernels, separated by a colon. The last State goes to END.xml, and a line of
// JSON to standard output.
//
// This is the core of the method, to start from. openmm_sd.ScoreDynamicsIntegrator does more: it
// settles the water around the jumped solute and draws several tries at once.

#include "OpenMM.h"
#include "ScoreDynamicsForce.h"
#include "openmm/serialization/XmlSerializer.h"
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

using namespace OpenMM;
using ScoreDynamicsPlugin::ScoreDynamicsForce;

namespace {

constexpr double GAS_CONSTANT = 8.31446261815324e-3;  // kJ/mol/K
constexpr double TEMPERATURE = 300.0;                 // K
constexpr double STEP = 0.002;                        // ps
// A jump that raises the potential energy further is taken back, kJ/mol.
constexpr double MAX_RISE = 200.0;
constexpr int LANGEVIN = 0, JUMP = 1, REFRESH = 2;

template <class T>
std::unique_ptr<T> readXml(const std::string& path) {
    std::ifstream file(path);
    if (!file)
        throw OpenMMException("cannot read " + path);
    return std::unique_ptr<T>(XmlSerializer::deserialize<T>(file));
}

int groupOfJump(const System& system) {
    for (int i = 0; i < system.getNumForces(); i++)
        if (dynamic_cast<const ScoreDynamicsForce*>(&system.getForce(i)) != nullptr)
            return system.getForce(i).getForceGroup();
    throw OpenMMException("the System holds no ScoreDynamicsForce");
}

/** Adds the displacement. The force is stored before the energy is read: one call of the model. */
CustomIntegrator* writeJump(int group) {
    auto* program = new CustomIntegrator(STEP);
    const std::string place = std::to_string(group);
    program->addGlobalVariable("under_way", 0.0);
    program->addGlobalVariable("status", 0.0);
    program->addPerDofVariable("displacement", 0.0);
    program->addComputeGlobal(ScoreDynamicsForce::Number(), "under_way");
    program->addComputePerDof("displacement", "f" + place);
    program->addComputeGlobal("status", "energy" + place);
    program->addComputeGlobal(ScoreDynamicsForce::Number(), "0");
    program->addComputePerDof("x", "x+displacement");
    return program;
}

/** One Langevin step that forgets all velocities in its middle, where the scheme draws its noise. */
CustomIntegrator* writeRefresh() {
    auto* program = new CustomIntegrator(STEP);
    program->addGlobalVariable("kT", GAS_CONSTANT * TEMPERATURE);
    program->addPerDofVariable("before", 0.0);
    program->addComputePerDof("x", "x");  // forces of before the jump are no longer valid
    program->addUpdateContextState();
    program->addComputePerDof("v", "v+dt*f/m");
    program->addConstrainVelocities();
    program->addComputePerDof("x", "x+0.5*dt*v");
    program->addComputePerDof("v", "sqrt(kT/m)*gaussian");
    program->addComputePerDof("x", "x+0.5*dt*v");
    program->addComputePerDof("before", "x");
    program->addConstrainPositions();
    program->addComputePerDof("v", "v+(x-before)/dt");
    program->addConstrainVelocities();
    return program;
}

struct Counts {
    int accepted = 0, refused = 0, takenBack = 0;
};

int run(const std::vector<std::string>& arguments) {
    const auto system = readXml<System>(arguments[0]);
    const auto start = readXml<State>(arguments[1]);
    const int jumps = std::stoi(arguments[4]), burst = std::stoi(arguments[5]);
    const double lag = std::stod(arguments[6]);
    const int seed = std::stoi(arguments[7]);

    const int group = groupOfJump(*system);
    const int others = ~(1 << group);
    CompoundIntegrator integrator;
    auto* langevin = new LangevinMiddleIntegrator(TEMPERATURE, 1.0, STEP);
    auto* jump = writeJump(group);
    auto* refresh = writeRefresh();
    langevin->setRandomNumberSeed(seed);
    refresh->setRandomNumberSeed(seed);
    for (Integrator* program : {static_cast<Integrator*>(langevin), static_cast<Integrator*>(jump),
                                static_cast<Integrator*>(refresh)}) {
        program->setIntegrationForceGroups(others);
        integrator.addIntegrator(program);
    }

    Context context(*system, integrator, Platform::getPlatformByName(arguments[3]));
    Vec3 box[3];
    start->getPeriodicBoxVectors(box[0], box[1], box[2]);
    context.setPeriodicBoxVectors(box[0], box[1], box[2]);
    context.setPositions(start->getPositions());
    context.setVelocitiesToTemperature(TEMPERATURE, seed);
    context.setParameter(ScoreDynamicsForce::Seed(), seed);
    context.setParameter(ScoreDynamicsForce::Lag(), lag);
    context.setParameter(ScoreDynamicsForce::Candidates(), 1);
    context.setParameter(ScoreDynamicsForce::Novelty(), 1e30);

    Counts counts;
    long long steps = 0;
    bool fresh = false;
    for (int number = 1; number <= jumps; number++) {
        int left = burst;
        if (fresh) {
            integrator.setCurrentIntegrator(REFRESH);
            integrator.step(1);
            left--;
            fresh = false;
        }
        integrator.setCurrentIntegrator(LANGEVIN);
        integrator.step(left);
        steps += burst;
        const State before = context.getState(State::Positions | State::Energy, false, others);
        jump->setGlobalVariableByName("under_way", number);
        integrator.setCurrentIntegrator(JUMP);
        integrator.step(1);
        const double status = jump->getGlobalVariableByName("status");
        if (static_cast<long long>(status) % 8 != 1 || status < 0) {
            counts.refused++;  // by the module's own gates: nothing has moved
            continue;
        }
        const State after = context.getState(State::Energy, false, others);
        if (!(after.getPotentialEnergy() - before.getPotentialEnergy() <= MAX_RISE)) {
            context.setPositions(before.getPositions());
            counts.takenBack++;
            continue;
        }
        counts.accepted++;
        fresh = true;
    }

    const State end = context.getState(State::Positions | State::Velocities | State::Parameters);
    std::ofstream file(arguments[8]);
    XmlSerializer::serialize<State>(&end, "State", file);
    const double time = steps * STEP;
    std::cout << "{\"jumps_tried\": " << jumps << ", \"jumps_accepted\": " << counts.accepted
              << ", \"refused\": " << counts.refused << ", \"taken_back\": " << counts.takenBack
              << ", \"md_time_ps\": " << time
              << ", \"effective_time_ps\": " << time + counts.accepted * lag << "}\n";
    return file ? 0 : 1;
}

} // namespace

int main(int argc, char** argv) {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    if (arguments.size() != 9) {
        std::cerr << "usage: mixed_run SYSTEM.xml STATE.xml PLUGINS PLATFORM JUMPS BURST_STEPS LAG_PS "
                     "SEED END.xml\n";
        return 2;
    }
    try {
        std::stringstream folders(arguments[2]);
        for (std::string folder; std::getline(folders, folder, ':');)
            Platform::loadPluginsFromDirectory(folder);
        return run(arguments);
    }
    catch (const std::exception& error) {
        std::cerr << "mixed_run: " << error.what() << "\n";
        return 1;
    }
}
