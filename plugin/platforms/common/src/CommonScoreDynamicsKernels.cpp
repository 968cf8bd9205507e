#include "CommonScoreDynamicsKernels.h"
#include "openmm/System.h"
#include "openmm/common/ContextSelector.h"
#include "openmm/common/NonbondedUtilities.h"
#include "openmm/internal/ContextImpl.h"
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

using namespace OpenMM;
using namespace ScoreDynamicsPlugin;

namespace {

// Forces are 64-bit fixed point with 32 bits behind the point.
const char* const SOURCE = R"(
KERNEL void gatherPositions(GLOBAL const real4* RESTRICT posq, GLOBAL real* RESTRICT gathered,
        GLOBAL const int* RESTRICT places, int count) {
    for (int i = GLOBAL_ID; i < count; i += GLOBAL_SIZE) {
        real4 position = posq[places[i]];
        gathered[3*i] = position.x;
        gathered[3*i+1] = position.y;
        gathered[3*i+2] = position.z;
    }
}

KERNEL void addDisplacement(GLOBAL const real* RESTRICT displacement, GLOBAL mm_long* RESTRICT force,
        GLOBAL const int* RESTRICT places, int count) {
    for (int i = GLOBAL_ID; i < count; i += GLOBAL_SIZE) {
        int place = places[i];
        force[place] += (mm_long) (displacement[3*i]*0x100000000);
        force[place+PADDED_NUM_ATOMS] += (mm_long) (displacement[3*i+1]*0x100000000);
        force[place+2*PADDED_NUM_ATOMS] += (mm_long) (displacement[3*i+2]*0x100000000);
    }
}
)";

// Place of the argument, in both kernels, that may lie in torch's memory.
constexpr int GATHERED = 1;
constexpr int DISPLACEMENT = 0;

} // namespace

class CommonCalcScoreDynamicsForceKernel::ReorderListener : public ComputeContext::ReorderListener {
public:
    explicit ReorderListener(CommonCalcScoreDynamicsForceKernel& owner) : owner(owner) {
    }
    void execute() override {
        owner.followReordering();
    }
private:
    CommonCalcScoreDynamicsForceKernel& owner;
};

void CommonCalcScoreDynamicsForceKernel::initialize(ContextImpl&, const ScoreDynamicsForce& force) {
    particles = force.getParticles();
    periodic = force.usesPeriodicBoundaryConditions();
    module = std::make_unique<JumpModule>(force.getModule(), device);
    const int count = static_cast<int>(particles.size());
    const bool doubles = cc.getUseDoublePrecision();
    const auto options = at::TensorOptions(doubles ? at::kDouble : at::kFloat);
    if (!device.is_cpu())
        shared = at::empty({count, 3}, options.device(device));

    ContextSelector selector(cc);
    places.initialize<int>(cc, count, "openmmSdPlaces");
    places.upload(particles);
    if (device.is_cpu())
        staging.initialize(cc, 3 * count, doubles ? sizeof(double) : sizeof(float), "openmmSdStaging");
    ComputeProgram program =
        cc.compileProgram(SOURCE, {{"PADDED_NUM_ATOMS", cc.intToString(cc.getPaddedNumAtoms())}});
    gatherKernel = program->createKernel("gatherPositions");
    gatherKernel->addArg(cc.getPosq());
    gatherKernel->addArg();
    gatherKernel->addArg(places);
    gatherKernel->addArg(count);
    addKernel = program->createKernel("addDisplacement");
    addKernel->addArg();
    addKernel->addArg(cc.getLongForceBuffer());
    addKernel->addArg(places);
    addKernel->addArg(count);
    if (device.is_cpu()) {
        gatherKernel->setArg(GATHERED, staging);
        addKernel->setArg(DISPLACEMENT, staging);
    }
    cc.addReorderListener(new ReorderListener(*this));
}

void CommonCalcScoreDynamicsForceKernel::followReordering() {
    const std::vector<int>& order = cc.getAtomIndex();
    std::vector<int> placeOf(order.size());
    for (int place = 0; place < cc.getNumAtoms(); place++)
        placeOf[order[place]] = place;
    std::vector<int> now(particles.size());
    for (std::size_t i = 0; i < particles.size(); i++)
        now[i] = placeOf[particles[i]];
    places.upload(now);
}

double CommonCalcScoreDynamicsForceKernel::execute(ContextImpl&, const JumpParameters& parameters,
                                                   bool includeForces) {
    const c10::InferenceMode guard;
    Vec3 box[3];
    cc.getPeriodicBoxVectors(box[0], box[1], box[2]);
    at::Tensor positions = gatherPositions();
    const Proposal proposal = (*module)(positions, periodic ? &box[0][0] : nullptr, parameters);
    if (includeForces)
        addDisplacement(proposal.displacement);
    return proposal.status;
}

at::Tensor CommonCalcScoreDynamicsForceKernel::gatherPositions() {
    const int count = static_cast<int>(particles.size());
    const auto dtype = cc.getUseDoublePrecision() ? at::kDouble : at::kFloat;
    at::Tensor gathered;
    {
        ContextSelector selector(cc);
        if (device.is_cpu()) {
            gathered = at::empty({count, 3}, dtype);
            gatherKernel->execute(count);
            staging.download(gathered.mutable_data_ptr());
        }
        else {
            gatherKernel->setArg(GATHERED, shared.mutable_data_ptr());
            gatherKernel->execute(count);
            // Torch works on a stream of its own.
            ComputeEvent event = cc.createEvent();
            event->enqueue();
            event->wait();
            gathered = shared;
        }
    }
    gathered = gathered.to(at::kDouble);
    if (!periodic && cc.getNonbondedUtilities().getUsePeriodic())
        undoWrapping(gathered);
    return gathered;
}

void CommonCalcScoreDynamicsForceKernel::undoWrapping(at::Tensor& gathered) {
    // Other forces are periodic, so that OpenMM has moved molecules by whole box vectors; a module
    // that knows no box needs them where they were.
    Vec3 box[3];
    cc.getPeriodicBoxVectors(box[0], box[1], box[2]);
    at::Tensor moved = at::empty({static_cast<int>(particles.size()), 3}, at::kDouble);
    double* to = moved.mutable_data_ptr<double>();
    std::vector<int> placeOf(cc.getNumAtoms());
    for (int place = 0; place < cc.getNumAtoms(); place++)
        placeOf[cc.getAtomIndex()[place]] = place;
    for (std::size_t i = 0; i < particles.size(); i++) {
        const mm_int4 cells = cc.getPosCellOffsets()[placeOf[particles[i]]];
        const Vec3 shift = box[0] * cells.x + box[1] * cells.y + box[2] * cells.z;
        for (int k = 0; k < 3; k++)
            to[3 * i + k] = shift[k];
    }
    gathered = gathered.sub(moved.to(device));
}

void CommonCalcScoreDynamicsForceKernel::addDisplacement(const at::Tensor& displacement) {
    const int count = static_cast<int>(particles.size());
    at::Tensor real = displacement.to(cc.getUseDoublePrecision() ? at::kDouble : at::kFloat);
    if (!device.is_cpu()) {
        shared.copy_(real);
        c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
    }
    ContextSelector selector(cc);
    if (device.is_cpu())
        staging.upload(real.const_data_ptr());
    else
        addKernel->setArg(DISPLACEMENT, shared.mutable_data_ptr());
    addKernel->execute(count);
}
