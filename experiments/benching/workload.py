"""What every sampler and every step under test is given: one model folder, the same prompts, the same ends.

Nothing is trained. The model has Qwen3's architecture and vocabulary at about 30 million parameters; its
next-token distribution is near uniform, so that a list of V / 64 EOS ids ends a row with probability 1/64
at every token, whoever samples.
"""

import dataclasses
import hashlib
import json
import os

import jax
import numpy as np

from opsd_jax.files import write_json
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import model
from opsd_jax.models.folder import write
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts

SPEC = ModelSpec(
  vocab_size=151_936, num_layers=6, embed_dim=160, num_heads=4, num_kv_heads=2, head_dim=64, mlp_dim=1600
)
TINY = dataclasses.replace(SPEC, vocab_size=512, num_layers=2, embed_dim=16, head_dim=8, mlp_dim=32)


@dataclasses.dataclass(frozen=True)
class Case:
  """Q questions, n rollouts of each, in as many slots, `budget` tokens each at most.

  Attributes:
    questions: Q.
    per_question: n.
    slots: rows that are sampled at a time.
    budget: tokens of a row.
    mean: its mean number of tokens where EOS ids end it; 0: none does.
    prompt: tokens of a prompt.
    teacher: tokens of the teacher's prompt; 0: there is none, only sampling is timed.
  """

  questions: int
  per_question: int
  slots: int
  budget: int
  mean: int = 0
  prompt: int = 100
  teacher: int = 0


EQUAL, GEOMETRIC, STEP = 'equal lengths', 'geometric lengths', 'step'
CASES = {
  EQUAL: Case(64, 1, 64, 256),
  GEOMETRIC: Case(64, 4, 64, 256, mean=64),
  STEP: Case(16, 4, 64, 32, teacher=200),
}
TINY_CASES = {
  EQUAL: Case(4, 1, 4, 4, prompt=6),
  GEOMETRIC: Case(4, 2, 4, 8, mean=4, prompt=6),
  STEP: Case(2, 2, 4, 4, prompt=6, teacher=9),
}


def prompts(spec: ModelSpec, case: Case, width: int, seed: int = 0) -> Prompts:
  """Q random prompts of `width` tokens; id 0 is left out, for a peer tells padding by it."""
  ids = np.random.default_rng(seed).integers(1, spec.vocab_size, size=(case.questions, width))
  return Prompts(
    ids=ids.astype(np.int32),
    length=np.full(case.questions, width, np.int32),
    problem_id=np.arange(case.questions, dtype=np.uint32),
  )


def student_prompts(spec: ModelSpec, case: Case) -> Prompts:
  """What is sampled from."""
  return prompts(spec, case, case.prompt)


def teacher_prompts(spec: ModelSpec, case: Case) -> Prompts:
  """The same questions as a teacher sees them: other random ids, for nothing here reads them."""
  return prompts(spec, case, case.teacher, seed=2)


def eos_ids(spec: ModelSpec, case: Case) -> tuple[int, ...]:
  """Ids drawn at random, one of `case.mean` of the vocabulary; none where rows are equally long."""
  if not case.mean:
    return ()
  size = round(spec.vocab_size / case.mean)
  chosen = 1 + np.random.default_rng(1).choice(spec.vocab_size - 1, size, replace=False)
  return tuple(int(i) for i in np.sort(chosen))


def write_folder(folder: str, tiny: bool) -> str:
  """Writes weights (float32) and `workload.json`, which other environments read; returns its path.

  Weights of this very shape that are there already stay: their seed is the same.
  """
  spec, cases = (TINY, TINY_CASES) if tiny else (SPEC, CASES)
  shape = hashlib.blake2b(repr(spec).encode(), digest_size=4).hexdigest()
  path = os.path.join(folder, f'model_{shape}')
  if not os.path.exists(path):
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    write.save(path, spec, model.init_params(spec, jax.random.key(0), mesh))
  named = os.path.join(folder, 'workload.json')
  described = {name: _described(spec, case) for name, case in cases.items()}
  write_json(named, {'model': os.path.abspath(path), 'tiny': tiny, 'cases': described})
  return named


def _described(spec: ModelSpec, case: Case) -> dict:
  more = {'prompts': student_prompts(spec, case).ids.tolist(), 'eos_ids': list(eos_ids(spec, case))}
  if case.teacher:
    more['teacher_prompts'] = teacher_prompts(spec, case).ids.tolist()
  return dataclasses.asdict(case) | more


def read(path: str) -> tuple[str, ModelSpec, dict[str, Case]]:
  """The model's folder, its spec and the cases of a `workload.json`."""
  with open(path) as file:
    found = json.load(file)
  return found['model'], *((TINY, TINY_CASES) if found['tiny'] else (SPEC, CASES))
