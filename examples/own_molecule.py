"""From a structure to a mixed run with a model of its own: MD, training, validation, jumps."""

import argparse
from openmm_sd.generate import GenerateSettings, generate
from openmm_sd.prepare import PrepareSettings, prepare
from openmm_sd.run import RunSettings, run_mixed
from openmm_sd.train import StageSettings, TrainSettings, train_bundle
from openmm_sd.validate import ValidateSettings, validate

parser = argparse.ArgumentParser(description=__doc__)
add = parser.add_argument
add("structure", help="PDB or mmCIF file")
add("--solvent", default="explicit", help="explicit or implicit")
add("--plain-ps", type=float, default=5000, metavar="PS", help="length of each of 4 plain runs")
add("--seeded", type=int, default=100, metavar="N", help="runs of 100 ps from everywhere")
add("--train-steps", type=int, default=20_000, metavar="N", help="of the training")
add("--width", type=int, default=384, metavar="N", help="of the network")
add("--lag", type=float, default=10, metavar="PS", help="of the jumps, validation and run")
add("--chain-steps", type=int, default=200, metavar="N", help="jumps a chain of the validation")
add("--jumps", type=int, default=1000, metavar="N", help="of the mixed run")
ask = parser.parse_args()

prepare(ask.structure, "system", PrepareSettings(solvent=ask.solvent))
amount = {"plain_runs": 4, "plain_ps": ask.plain_ps, "seeded_runs": ask.seeded, "seeded_ps": 100}
generate("system/solute.pdb", "data.h5", GenerateSettings(ask.solvent, **amount))
training = TrainSettings(minutes=600, max_steps=ask.train_steps)
settings = StageSettings(network_settings={"width": ask.width}, training=training)
train_bundle(["data.h5"], "model.safetensors", settings)
# Against the tenth of the data that training held out; MD of its own says more.
check = ValidateSettings(lags=(ask.lag,), steps=ask.chain_steps)
validate("model.safetensors", None, "report", check)
length = RunSettings(jumps=ask.jumps, lag_ps=ask.lag)
summary = run_mixed("model.safetensors", "system", "run", length)
print(f"{summary['jumps_accepted']} of {summary['jumps_tried']} jumps accepted")
print("how good the model is: report/validation.html")
