"""An experiment: the rooms' configs composed, cross-checked, and turned into a run's workbench."""

from opsd_jax.experiment.agreement import validate, validate_shapes
from opsd_jax.experiment.config import CONTINUABLE, CONTROLLABLE, Control, Experiment, with_control
from opsd_jax.experiment.workbench import assemble, build

__all__ = [
  'CONTINUABLE',
  'CONTROLLABLE',
  'Control',
  'Experiment',
  'assemble',
  'build',
  'validate',
  'validate_shapes',
  'with_control',
]
