"""Says what a run would take on a TPU slice, on a machine without one: memory, time, exchanges, chip-hours.

  python -m experiments.plan --experiment=opsd_qwen3_8b --topology=v5e:16x16 --set=mesh.tensor=4
  python -m experiments.plan --experiment=opsd_qwen3_8b --topology=v5e:4x4 --search --out=plan.json

The programs of an update (rollouts, the teacher's scores, the step) are compiled by the TPU's own compiler
for the slice and read: memory is the compiler's, work is counted with every loop as often as it turns, time
is a roofline whose terms are printed. Nothing runs, and no weights, problems or tokenizer are needed:
--experiment and --set say the shapes. Needs libtpu (requirements/tpu-compile.txt), in the environment or at
TPU_LIBRARY_PATH. Ends with code 3 where it does not fit.
"""

from typing import Any

import jax
from absl import flags

from experiments import common
from experiments.planning import search, text, topology, whole
from experiments.planning.search import Tried
from opsd_jax import experiment as experiments
from opsd_jax.analyze import chips
from opsd_jax.experiment import Experiment
from opsd_jax.files import write_json

flags.adopt_module_key_flags(common)
_TOPOLOGY = flags.DEFINE_string(
  'topology', 'v5e:4x4', 'The slice: chip and sizes, as v5e:16x16 or v5p:4x4x4.'
)
_SEARCH = flags.DEFINE_bool('search', False, 'Try meshes and micro-batches, and print the fastest that fits.')
_OUT = flags.DEFINE_string('out', None, 'A JSON file for what is printed.')


def main(experiment: Experiment) -> int:
  """Plans the experiment; 3 if it does not fit."""
  jax.config.update('jax_platforms', 'cpu')  # or JAX would look for the TPU that the compiler is for
  where = chips.parse(_TOPOLOGY.value)
  devices = topology.devices(where)
  if not _SEARCH.value:
    plan = whole.make(experiment, where, devices)
    print(text.describe(plan))
    _write(plan.to_dict())
    return 0 if plan.fits else 3
  tried = list(search.search(experiment, where, devices))
  chosen = search.best(tried)
  print(search.table(tried))
  _write({'tried': [_tried(one) for one in tried]})
  if chosen is None:
    print('\nNone fits.')
    return 3
  print(f'\n{text.describe(chosen.plan)}')
  return 0


def _tried(one: Tried) -> dict[str, Any]:
  """As plain values."""
  if one.plan is not None:
    return one.plan.to_dict()
  sizes = {'data': one.mesh.data, 'fsdp': one.mesh.fsdp, 'tensor': one.mesh.tensor}
  return {'mesh': sizes, 'micro_tokens': one.micro_tokens, 'fits': False, 'why': one.why}


def _write(found: dict[str, Any]) -> None:
  if _OUT.value is not None:
    write_json(_OUT.value, found)


if __name__ == '__main__':
  common.run(main, __doc__, experiments.validate_shapes, alone=True)
