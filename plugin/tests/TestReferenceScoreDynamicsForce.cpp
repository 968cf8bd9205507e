// The plugin without Python: what the address sanitizer and valgrind look at.
//
//     TestReferenceScoreDynamicsForce SHIFT.pt FAILS.pt PLUGINS all|leaks
//
// SHIFT.pt displaces each atom by (0.125, 0.25, 0.5) times the number of the try plus one, with status 1
// plus the number of the jump; FAILS.pt throws; PLUGINS is the folder of the plugin's kernels. "leaks"
// leaves out Contexts that cannot be made, because OpenMM leaks those itself.

#include "OpenMM.h"
#include "ScoreDynamicsForce.h"
#include "openmm/serialization/XmlSerializer.h"
#include <cmath>
#include <functional>
#include <iostream>
#include <memory>
#include <sstream>
#include <thread>

using namespace OpenMM;
using ScoreDynamicsPlugin::ScoreDynamicsForce;

namespace {

constexpr int GROUP = 3;
const std::vector<int> SOLUTE = {2, 0, 4};

void require(bool condition, const std::string& what) {
    if (!condition)
        throw std::runtime_error("not so: " + what);
}

std::string messageOf(const std::function<void()>& work) {
    try {
        work();
    }
    catch (const OpenMMException& error) {
        return error.what();
    }
    return "";
}

std::unique_ptr<System> systemWith(ScoreDynamicsForce* force) {
    auto system = std::make_unique<System>();
    for (int i = 0; i < 6; i++)
        system->addParticle(1.0);
    force->setForceGroup(GROUP);
    system->addForce(force);
    return system;
}

void checkJump(Context& context, int number, int attempt) {
    context.setParameter(ScoreDynamicsForce::Number(), number);
    context.setParameter(ScoreDynamicsForce::Attempt(), attempt);
    context.setParameter(ScoreDynamicsForce::Candidates(), 1);
    const State state = context.getState(State::Forces | State::Energy, false, 1 << GROUP);
    const double factor = number > 0 ? attempt + 1 : 0;
    for (int i = 0; i < 6; i++) {
        const bool moves = i % 2 == 0;
        const Vec3 expected = moves ? Vec3(0.125, 0.25, 0.5) * factor : Vec3();
        const Vec3 off = state.getForces()[i] - expected;
        std::ostringstream seen;
        seen << "particle " << i << " is displaced by " << state.getForces()[i] << ", as the module says";
        require(std::sqrt(off.dot(off)) < 1e-12, seen.str());
    }
    require(state.getPotentialEnergy() == number, "the energy is the status");
}

void testJump(const std::string& module, Platform& platform) {
    const auto system = systemWith(new ScoreDynamicsForce(ScoreDynamicsForce::fromFile(module, SOLUTE)));
    VerletIntegrator integrator(0.001);
    Context context(*system, integrator, platform);
    context.setPositions(std::vector<Vec3>(6));
    checkJump(context, 0, 0);
    checkJump(context, 1, 0);
    checkJump(context, 7, 2);
    checkJump(context, 0, 2);
    std::stringstream checkpoint;
    checkJump(context, 5, 1);
    context.createCheckpoint(checkpoint);
    checkJump(context, 0, 0);
    context.loadCheckpoint(checkpoint);
    require(context.getParameter(ScoreDynamicsForce::Number()) == 5, "checkpoints hold parameters");
    context.reinitialize(true);
    checkJump(context, 5, 1);
}

void testXml(const std::string& module, Platform& platform) {
    ScoreDynamicsForce force = ScoreDynamicsForce::fromFile(module, SOLUTE);
    force.setUsesPeriodicBoundaryConditions(true);
    force.setName("a <name> & more");
    force.setForceGroup(9);
    const ScoreDynamicsForce copied = force;
    std::stringstream text;
    XmlSerializer::serialize<Force>(&copied, "Force", text);
    std::unique_ptr<Force> read(XmlSerializer::deserialize<Force>(text));
    const auto* again = dynamic_cast<ScoreDynamicsForce*>(read.get());
    require(again != nullptr, "the class comes back");
    require(again->getModule() == force.getModule(), "the module comes back");
    require(again->getParticles() == SOLUTE, "the particles come back");
    require(again->usesPeriodicBoundaryConditions(), "periodicity comes back");
    require(again->getName() == force.getName(), "the name comes back");
    require(again->getForceGroup() == 9, "the force group comes back");

    const auto system = systemWith(new ScoreDynamicsForce(force));
    const std::unique_ptr<System> clone(XmlSerializer::clone(*system));
    VerletIntegrator integrator(0.001);
    Context context(*clone, integrator, platform);
    context.setPositions(std::vector<Vec3>(6));
    checkJump(context, 2, 0);

    const auto reading = [&](const std::string& from, const std::string& to) {
        std::string changed = text.str();
        changed.replace(changed.find(from), from.size(), to);
        return messageOf([&] {
            std::stringstream stream(changed);
            XmlSerializer::deserialize<Force>(stream);
        });
    };
    require(reading("version=\"1\"", "version=\"3\"").find("version 3") != std::string::npos,
            "a version of the future is refused");
    require(reading("module=\"", "module=\"?").find("cut short") != std::string::npos,
            "a module of the wrong length is refused");
    require(reading("module=\"", "module=\"????").find("damaged") != std::string::npos,
            "a damaged module is refused");
}

void testRefusals(const std::string& module, Platform& platform) {
    const auto creating = [&](ScoreDynamicsForce* force) {
        const auto system = systemWith(force);
        return messageOf([&] {
            VerletIntegrator integrator(0.001);
            Context context(*system, integrator, platform);
        });
    };
    const std::string bytes = ScoreDynamicsForce::fromFile(module, SOLUTE).getModule();
    require(creating(new ScoreDynamicsForce(bytes, {})).find("no particles") != std::string::npos,
            "a force without particles is refused");
    require(creating(new ScoreDynamicsForce(bytes, {6})).find("particle 6") != std::string::npos,
            "a particle that is not there is refused");
    require(creating(new ScoreDynamicsForce(bytes, {-1})).find("particle -1") != std::string::npos,
            "a negative particle is refused");
    require(creating(new ScoreDynamicsForce(bytes, {1, 1})).find("twice") != std::string::npos,
            "a particle named twice is refused");
    require(creating(new ScoreDynamicsForce("nonsense", {1})).find("cannot be loaded") != std::string::npos,
            "what is no module is refused");
    require(messageOf([] { ScoreDynamicsForce::fromFile("/no/file", {1}); }).find("/no/file") != std::string::npos,
            "a file that is not there is named");
}

void testExceptions(const std::string& fails, Platform& platform) {
    const auto system = systemWith(new ScoreDynamicsForce(ScoreDynamicsForce::fromFile(fails, SOLUTE)));
    VerletIntegrator integrator(0.001);
    Context context(*system, integrator, platform);
    context.setPositions(std::vector<Vec3>(6));
    checkJump(context, 0, 0);
    for (int number = 1; number <= 4; number++) {
        const std::string message = messageOf([&] { checkJump(context, number, 0); });
        const std::string words = number % 2 == 0 ? "broken on purpose" : "must match the size";
        require(message.find(words) != std::string::npos, "the exception's text arrives");
        checkJump(context, 0, 0);
    }
}

void testThreads(const std::string& module, Platform& platform) {
    std::vector<std::thread> threads;
    std::vector<std::string> messages(3);
    for (std::string& message : messages)
        threads.emplace_back([&] {
            try {
                testJump(module, platform);
            }
            catch (const std::exception& error) {
                message = error.what();
            }
        });
    for (std::thread& thread : threads)
        thread.join();
    for (const std::string& message : messages)
        require(message.empty(), "a Context in a thread of its own: " + message);
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 5) {
        std::cerr << "usage: " << argv[0] << " SHIFT.pt FAILS.pt PLUGINS all|leaks\n";
        return 2;
    }
    try {
        Platform::loadPluginLibrary(std::string(argv[3]) + "/libOpenMMScoreDynamicsReference.so");
        Platform& platform = Platform::getPlatformByName("Reference");
        testJump(argv[1], platform);
        testXml(argv[1], platform);
        testExceptions(argv[2], platform);
        if (std::string(argv[4]) == "all")
            testRefusals(argv[1], platform);
        testThreads(argv[1], platform);
    }
    catch (const std::exception& error) {
        std::cerr << "FAILED: " << error.what() << "\n";
        return 1;
    }
    std::cout << "ok\n";
    return 0;
}
