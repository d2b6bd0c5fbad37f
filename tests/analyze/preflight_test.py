"""Warnings about what the views ask the two to begin with; what a layout wastes and a controller holds."""

import dataclasses

import jax
import pytest

from opsd_jax.analyze import preflight
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig, ViewsConfig
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import lora, model
from opsd_jax.models.lora import LoraConfig
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Problem
from opsd_jax.rollout.config import DecodeConfig, RolloutConfig
from opsd_jax.text.tokenizer import TokenizerConfig, make_tokenizer
from tests.experiments import real_text

PROBLEM = Problem(id='a', problem='Why?', solution='Because of it.', answer='b', source='test')
VIEWS = ViewsConfig(student_tokens=300, teacher_tokens=999).named('opsd')
MISMATCH, NO_SWITCH = 'end in another token', 'does not read enable_thinking'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return real_text.write_tokenizer(tmp_path_factory.mktemp('tokenizer'))


def found(config, tokenizer, objective=ObjectiveConfig()):
  student, teacher = (preflight.views.prompt(config, PROBLEM, role, tokenizer) for role in preflight.ROLES)
  ids = (tokenizer.encode_template(text) for text in (student, teacher))
  reading = preflight.Reading(PROBLEM, student, teacher, *ids, [1], 1, -1.0, -1.0)
  return ' '.join(preflight.warnings([reading], config, tokenizer, objective, trained=False))


def test_the_preset_is_no_mistake(folder):
  warnings = found(VIEWS, make_tokenizer(TokenizerConfig(path=str(folder))))
  assert MISMATCH not in warnings and NO_SWITCH not in warnings


def test_a_template_without_the_switch(folder, tmp_path):
  (tmp_path / 'plain.jinja').write_text("{{ messages[0]['content'] }}")
  plain = make_tokenizer(TokenizerConfig(path=str(folder), chat_template=str(tmp_path / 'plain.jinja')))
  assert NO_SWITCH in found(VIEWS, plain)
  same = dataclasses.replace(VIEWS, teacher_thinking=False)
  assert NO_SWITCH not in found(same, plain)


def test_prompts_that_end_differently_by_mistake(folder):
  tokenizer = make_tokenizer(TokenizerConfig(path=str(folder)))
  config = ViewsConfig('{problem}:', '{problem} {solution}', student_tokens=99, teacher_tokens=99)
  assert MISMATCH in found(config, tokenizer)


@pytest.mark.parametrize(
  'data, questions, decode, said',
  [
    (2, 8, DecodeConfig(), []),
    (2, 7, DecodeConfig(), ['7 questions do not divide over the 2 row shards']),
    (2, 8, DecodeConfig(slots=16, compact=True), []),
    (2, 8, DecodeConfig(slots=5), ['rounded up to 6']),
    (2, 8, DecodeConfig(slots=8, compact=True), ['compact changes nothing with 4 slots on each of 2']),
    (2, 8, DecodeConfig(slots=32), ['no slot is ever filled again']),
    (2, 7, DecodeConfig(slots=13), ['7 questions do not divide']),  # and hence one group of any size
  ],
)
def test_what_a_layout_wastes(data, questions, decode, said):
  mesh = make_mesh(MeshConfig(data, 1, 1), jax.devices()[:data])
  found = preflight.layout_warnings(mesh, RolloutConfig(questions=questions, per_question=4, decode=decode))
  assert len(found) == len(said) and all(text in line for text, line in zip(said, found, strict=True)), found


@pytest.mark.parametrize(
  ('estimator', 'k', 'warns'), [('reward_topk', 1, True), ('reward_topk', 2, False), ('divergence', 1, False)]
)
def test_a_single_reward_is_biased(folder, estimator, k, warns):
  objective = ObjectiveConfig(estimator, divergence='reverse_kl', support='student_topk', k=k)
  told = found(VIEWS, make_tokenizer(TokenizerConfig(path=str(folder))), objective)
  assert ('objective.k is 1' in told) == warns


def test_what_a_controller_holds():
  """The weights that it measures from and a candidate, in float32; of adapters as many."""
  spec, mesh = ModelSpec(vocab_size=32), make_mesh(MeshConfig(), jax.devices()[:1])
  config, whole = LoraConfig(rank=2), model.abstract_params(spec, mesh)
  rooms = spec, whole, RolloutConfig(), VIEWS, ObjectiveConfig(), TeacherConfig()
  trained = {'all': (None, whole), 'adapters': (lora.abstract(config, spec, mesh),) * 2}
  for adapters, tree in trained.values():
    without, with_one = (preflight.memory(*rooms, adapters, anchored) for anchored in (False, True))
    (name,) = with_one.keys() - without.keys()
    assert with_one[name] == 2 * 4 * sum(x.size for x in jax.tree.leaves(tree))
    assert {k: v for k, v in with_one.items() if k != name} == without
