"""What all the timed programs are given, and the tables of what they report."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benching import own, peers, tables, workload
from opsd_jax.distill import objective
from opsd_jax.distill.config import ObjectiveConfig
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import model
from opsd_jax.models.folder import read
from opsd_jax.rollout.config import DecodeConfig


@pytest.fixture(scope='module')
def work(tmp_path_factory):
  return workload.write_folder(str(tmp_path_factory.mktemp('bench')), tiny=True)


def load(work):
  folder, spec, cases = workload.read(work)
  mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
  return read.load(folder, spec, mesh), spec, cases


def test_the_ends_of_rows_are_a_share_of_the_vocabulary():
  case = workload.CASES[workload.GEOMETRIC]
  ids = workload.eos_ids(workload.SPEC, case)
  assert len(set(ids)) == len(ids) == round(151_936 / 64) and min(ids) > 0
  assert workload.eos_ids(workload.SPEC, workload.CASES[workload.EQUAL]) == ()
  assert case.questions * case.per_question == 256


def test_the_model_is_of_the_size_that_it_says():
  mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
  shapes = jax.tree.leaves(model.abstract_params(workload.SPEC, mesh))
  matrices = 2 * 160 * 256 + 2 * 160 * 128 + 3 * 160 * 1600
  norms = 2 * 160 + 2 * 64
  assert sum(x.size for x in shapes) == 151_936 * 160 + 6 * (matrices + norms) + 160 == 29_657_888


def test_the_file_for_other_programs_says_what_ours_are_given(work):
  with open(work) as file:
    found = json.load(file)
  for name, case in workload.TINY_CASES.items():
    said = found['cases'][name]
    np.testing.assert_array_equal(said['prompts'], workload.student_prompts(workload.TINY, case).ids)
    assert tuple(said['eos_ids']) == workload.eos_ids(workload.TINY, case)
    assert {field.name: said[field.name] for field in dataclasses.fields(case)} == dataclasses.asdict(case)
    assert np.min(said['prompts']) > 0
  again = workload.write_folder(os.path.dirname(work), tiny=True)
  assert again == work and workload.read(work)[1:] == (workload.TINY, workload.TINY_CASES)


def test_batches_draw_what_all_rows_at_once_do(work):
  params, spec, cases = load(work)
  case = cases[workload.GEOMETRIC]
  drawn = own._ways(spec, params, case)['without refill, in batches'](5)
  prompts = workload.student_prompts(spec, case)
  expected = own._sample(spec, params, case, prompts, DecodeConfig(), 5)
  np.testing.assert_array_equal(drawn.rollout.ids, expected.rollout.ids)
  np.testing.assert_array_equal(drawn.rollout.length, expected.rollout.length)
  # Rows that have ended stay in their batch until its longest one ends.
  longest = drawn.rollout.length.reshape(2, 4).max(1).sum()
  assert drawn.token_positions.sum() == 4 * longest


def test_a_program_that_is_not_there_is_a_row_that_says_so(work, tmp_path):
  out = str(tmp_path / 'out.json')
  program = dataclasses.replace(peers.PEERS['tunix'], python=str(tmp_path / 'none' / 'python'))
  report = peers.run(program, work, out)
  assert 'is not there' in report['missing']
  script = tmp_path / 'fails.py'
  script.write_text('raise SystemExit("no such model")')
  failed = peers.run(peers.Program('x', sys.executable, (str(script),)), work, out)
  assert failed['missing'] == 'ended with code 1: no such model'
  rows = tables.rollouts({'missing': 'ended'}, {'x': failed})
  assert [row['program'] for row in rows] == ['ours', 'x'] * 2
  assert 'not measured: ended with code 1: no such model' in tables.markdown(rows)


def sampled(tokens, seconds, **more):
  return dict(tokens=tokens, requests=4, seconds=seconds, cpu_seconds=2 * seconds, load=1.0) | more


def test_ratios_are_those_of_our_best_way():
  ways = {'refill': sampled(100, 2.0, idle=0.1), 'batches': sampled(100, 4.0, idle=0.5)}
  ways['head left out, for orientation'] = sampled(100, 0.1)
  own_report = {'cases': {workload.EQUAL: ways, workload.GEOMETRIC: ways}}
  peer = {'cases': {name: sampled(50, 10.0) for name in own_report['cases']}}
  rows = tables.rollouts(own_report, {'other': peer})
  assert [row['ours_faster'] for row in rows] == [None, None, None, 10.0] * 2
  assert rows[0]['tokens_per_second'] == 50 and rows[3]['tokens_per_second'] == 5
  text = tables.markdown(rows)
  assert text.count('10.00x') == 4 and '10.0%' in text and len(text.splitlines()) == 10

  step = dict(seconds=1.0, cpu_seconds=2.0, load=0.0)
  ours = {'steps': [step], 'peak_mib': 10.0, 'loss': [0.5]}
  others = {'steps': [step | {'seconds': s} for s in (9.0, 3.0, 4.0)], 'peak_mib': 20.0, 'loss': [0.5]}
  rows = tables.steps(ours, others)
  assert rows[1]['ours_faster'] == 4.0 and '4.00x' in tables.markdown(rows)


LOSS = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import peer_transformers, torch_step
student = peer_transformers.load(sys.argv[2])
teacher = peer_transformers.load(sys.argv[2])
prompts, seen, drawn = (torch.tensor(x) for x in eval(sys.argv[3]))
loss = torch_step.backward(student, teacher, prompts, seen, drawn)
print('LOSS', loss, student.lm_head.weight.grad.norm().item())
"""


@pytest.mark.reference
def test_the_other_step_has_our_loss_and_gradient(work):
  params, spec, cases = load(work)
  case = cases[workload.STEP]
  student, seen = (
    np.repeat(f(spec, case).ids, case.per_question, 0)
    for f in (workload.student_prompts, workload.teacher_prompts)
  )
  drawn = np.random.default_rng(0).integers(1, spec.vocab_size, (len(student), case.budget)).astype(np.int32)

  def hidden(params, ids):
    return model.continuation_hidden(spec, params, ids, jnp.full(len(ids), ids.shape[1]), jnp.asarray(drawn))

  def loss_of(params, frozen):
    config = ObjectiveConfig(implementation='chunked')
    states = hidden(params, student), hidden(frozen, seen)
    heads = model.head(spec, params), model.head(spec, frozen)
    loss, _ = objective.compare(
      states[0], heads[0], states[1], heads[1], jnp.asarray(drawn), config, spec.vocab_size
    )
    return loss.mean()

  ours, gradient = jax.value_and_grad(loss_of)(params, params)
  python = os.environ.get('OPSD_REFERENCE_PYTHON', sys.executable)
  given = str([x.tolist() for x in (student, seen, drawn)])
  done = subprocess.run(
    [python, '-c', LOSS, peers._HERE, workload.read(work)[0], given], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-2000:]
  (line,) = (line for line in done.stdout.splitlines() if line.startswith('LOSS'))
  theirs, norm = map(float, line.split()[1:])
  np.testing.assert_allclose(float(ours), theirs, rtol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(gradient['embedding']), norm, rtol=1e-4)
