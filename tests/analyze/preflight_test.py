"""Warnings about what the views ask the two to begin with; what a controller holds."""

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
from opsd_jax.rollout.config import RolloutConfig
from opsd_jax.text.tokenizer import TokenizerConfig, make_tokenizer
from tests.experiments import real_text

PROBLEM = Problem(id='a', problem='Why?', solution='Because of it.', answer='b', source='test')
VIEWS = ViewsConfig(student_tokens=300, teacher_tokens=999).named('opsd')
MISMATCH, NO_SWITCH = 'end in another token', 'does not read enable_thinking'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return real_text.write_tokenizer(tmp_path_factory.mktemp('tokenizer'))


def found(config, tokenizer):
  student, teacher = (preflight.views.prompt(config, PROBLEM, role, tokenizer) for role in preflight.ROLES)
  ids = (tokenizer.encode_template(text) for text in (student, teacher))
  reading = preflight.Reading(PROBLEM, student, teacher, *ids, [1], 1, -1.0, -1.0)
  return ' '.join(preflight.warnings([reading], config, tokenizer, ObjectiveConfig(), trained=False))


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
