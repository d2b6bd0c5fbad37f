"""What every sampler under test is given: one model folder, the same prompts, the same ends.

Nothing is trained. The model has Qwen3's architecture and vocabulary at about 30 million parameters; its
next-token distribution is near uniform, so that a list of V / 64 EOS ids ends a row with probability 1/64
at every token, whoever samples.
"""

import dataclasses
import json
import os

import jax
import numpy as np

from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import model
from opsd_jax.models.folder import write
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts

SPEC = ModelSpec(
  vocab_size=151_936, num_layers=12, embed_dim=128, num_heads=8, num_kv_heads=4, head_dim=64, mlp_dim=1536
)
TINY = dataclasses.replace(SPEC, vocab_size=512, num_layers=2, embed_dim=16, head_dim=8, mlp_dim=32)


@dataclasses.dataclass(frozen=True)
class Case:
  """One table: Q questions, n rollouts of each, in as many slots, `budget` tokens each at most.

  Attributes:
    questions: Q.
    per_question: n.
    slots: rows that are sampled at a time.
    budget: tokens of a row.
    mean: its mean number of tokens where EOS ids end it; 0: none does.
  """

  questions: int
  per_question: int
  slots: int
  budget: int
  mean: int

  @property
  def requests(self) -> int:
    return self.questions * self.per_question


CASES = {'equal lengths': Case(64, 1, 64, 256, 0), 'geometric lengths': Case(64, 4, 64, 256, 64)}
TINY_CASES = {'equal lengths': Case(4, 1, 4, 4, 0), 'geometric lengths': Case(4, 2, 4, 8, 4)}
PROMPT = 100


def prompts(spec: ModelSpec, case: Case, width: int = PROMPT) -> Prompts:
  """Q random prompts of `width` tokens; id 0 is left out, for a peer tells padding by it."""
  ids = np.random.default_rng(0).integers(1, spec.vocab_size, size=(case.questions, width))
  return Prompts(
    ids=ids.astype(np.int32),
    length=np.full(case.questions, width, np.int32),
    problem_id=np.arange(case.questions, dtype=np.uint32),
  )


def eos_ids(spec: ModelSpec, case: Case) -> tuple[int, ...]:
  """Ids drawn at random, one of `case.mean` of the vocabulary; none where rows are equally long."""
  if not case.mean:
    return ()
  size = round(spec.vocab_size / case.mean)
  chosen = 1 + np.random.default_rng(1).choice(spec.vocab_size - 1, size, replace=False)
  return tuple(int(i) for i in np.sort(chosen))


def write_folder(folder: str, spec: ModelSpec, cases: dict[str, Case]) -> str:
  """Writes the weights (float32) and `workload.json` for the peers; returns the model's folder.

  Weights that are there already are kept: they are the same, for their seed is.
  """
  path = os.path.join(folder, 'model')
  if not os.path.exists(path):
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    write.save(path, spec, model.init_params(spec, jax.random.key(0), mesh))
  described = {
    name: dataclasses.asdict(case)
    | {'prompts': prompts(spec, case).ids.tolist(), 'eos_ids': list(eos_ids(spec, case))}
    for name, case in cases.items()
  }
  with open(os.path.join(folder, 'workload.json'), 'w') as file:
    json.dump({'model': os.path.abspath(path), 'cases': described}, file)
  return path
