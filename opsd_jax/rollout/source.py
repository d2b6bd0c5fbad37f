"""Where an update's rollouts come from."""

from typing import Protocol

from opsd_jax.models.model import Params
from opsd_jax.records import Prompts, Sampled


class Rollouts(Protocol):
  """Draws the rollouts of an update: our own sampler, or a server elsewhere (`engine.client`)."""

  def __call__(self, params: Params, prompts: Prompts, number: int) -> Sampled:
    """Continues every prompt of update `number`.

    Args:
      params: the student's parameters after `number` updates, plain or `Adapted`.
      prompts: Q questions, on the host.
      number: updates done so far; counts the randomness, together with the run's seed.

    Returns:
      On the host, B = Q·n rows of at most T tokens, row b of question b // n. `policy_version` says of
      each row whose weights drew it: `number` where it was these.
    """
