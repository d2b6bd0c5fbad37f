"""Experiments: the quickstart is valid, rooms agree, controls are checked, no setting is idle."""

import ast
import dataclasses
import json
import pathlib
import typing

import pytest

from experiments import recipes
from opsd_jax import config as configs
from opsd_jax import experiment as lib
from opsd_jax.config import ConfigError
from opsd_jax.experiment import Control, Experiment
from opsd_jax.train.config import parse_budget

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
QUICKSTART = recipes.load('quickstart')
SHRUNK = [
  'data.chains.steps=3',
  'data.chains.train=40',
  'data.chains.validation=4',
  'data.chains.test=6',
  'rollout.questions=8',
  'cold_start.updates=0',
  'cold_start.batch=8',
  'model.embed_dim=8',
  'loop.updates=2',
  'seed=7',
]


def changed(*assignments):
  return configs.override(QUICKSTART, assignments)


# --- What is valid.


def test_the_quickstart_is_valid():
  lib.validate(QUICKSTART)
  assert QUICKSTART.name == 'quickstart'
  assert [control.name for control in QUICKSTART.controls] == ['no_privilege', 'sharpened_no_privilege']


def test_the_default_experiment_is_valid():
  lib.validate(Experiment(name='default'))


@pytest.mark.parametrize(
  ('assignments', 'words'),
  [
    (['model.vocab_size=19'], ['model.vocab_size is 19', '20 ids', 'raise model.vocab_size']),
    (['tokenizer.alphabet=0123456789+-*=,|:abcdefghijklmnop'], ['model.vocab_size is 32', '36 ids']),
    (['loop.micro_tokens=58'], ['loop.micro_tokens is 58', 'may take 59 positions']),
    (['objective.support=teacher_topk', 'objective.k=21'], ['objective', 'k is 21', '20']),
    (['objective.divergence=jsd', 'objective.beta=1'], ['beta is 1.0', 'reverse_kl']),
    (['rollout.sampling.top_k=21'], ['rollout.sampling.top_k is 21', '1..20']),
    (['evaluate.sampling.top_k=21'], ['evaluate.sampling.top_k is 21', '1..20']),
    (['model.num_heads=3'], ['model.num_heads is 3', 'model.num_kv_heads']),
    (['model.head_dim=5'], ['model.head_dim is 5', 'even']),
    (['data.chains.train=40000'], ['data.chains', '32805', 'data.chains.steps']),
    (['tokenizer.alphabet=00'], ["tokenizer.alphabet is '00'", 'more than once']),
    (['teacher.ema_decay=1'], ['teacher.ema_decay is 1.0']),
    (['optimizer.learning_rate=0'], ['optimizer.learning_rate is 0.0']),
    (['cold_start.optimizer.decay_updates=20'], ['cold_start.optimizer.decay_updates is 20']),
    (['loop.budget=hours:2'], ["'hours:2'", 'minutes:X']),
    (['views.student_tokens=0'], ['views.student_tokens is 0']),
    (['checkpoint.every=0'], ['checkpoint.every is 0']),
    (['metrics.wandb=none', 'rollout.buckets=32,16'], ['rollout.buckets is (32, 16)', 'ascending']),
    (['evaluate.batch=0'], ['evaluate.batch is 0']),
    (['lora.rank=-1'], ['lora.rank is -1']),
    (['lora.rank=4', 'lora.targets=q_proj,lm_head'], ["lora.targets has 'lm_head'"]),
    (['weigh.kind=renyo'], ["weigh.kind is 'renyo'", "'renio'"]),
    (['weigh.kind=renio', 'weigh.scope=micro', 'weigh.micro=7'], ['weigh.micro is 7', '64 samples']),
    (['objective.estimator=reward_topk'], ['objective.divergence=reverse_kl']),
    (['objective.support=intersection', 'objective.k=4'], ['objective.estimator=reward_topk']),
    (['weights.path=/nowhere'], ["weights.path is '/nowhere'", 'no folder']),
  ],
)
def test_what_the_rooms_must_agree_on(assignments, words):
  with pytest.raises(ConfigError) as caught:
    lib.validate(changed(*assignments))
  assert all(word in str(caught.value) for word in words)


def test_the_head_may_be_wider_than_the_tokenizer():
  lib.validate(changed('model.vocab_size=20'))
  lib.validate(changed('model.vocab_size=128'))


@pytest.mark.parametrize(
  ('assignment', 'words'),
  [
    ('seed=-1', 'seed is -1'),
    ('seed=4294967296', 'seed is 4294967296'),
    ('data.chains.seed=-1', 'data.chains.seed is -1'),
    ('evaluate.seed=-1', 'evaluate.seed is -1'),
    ('views.student={problm}:', "views.student.*mean 'problem'"),
    ('views.teacher={problem}|{refrence}:', "views.teacher.*mean 'reference'"),
    ('views.teacher={problem', 'views.teacher is'),
    ('views.student=Solve {problem}', 'tokenizer.alphabet'),
    ('views.teacher_tokens=3', r"its teacher's prompt is longer than views.teacher_tokens \(3\)"),
    ('rollout.sampling.max_tokens=3', r'longer than rollout.sampling.max_tokens \(3\)'),
    ('rollout.questions=41', 'rollout.questions is 41.*40 training problems'),
    ('cold_start.batch=41', 'cold_start.batch is 41.*40 training problems'),
    ('objective.beta=nan', 'objective.beta is nan'),
    ('optimizer.learning_rate=inf', 'optimizer.learning_rate is inf'),
  ],
)
def test_mistakes_are_found_before_anything_expensive(assignment, words):
  with pytest.raises(ConfigError, match=words):
    lib.build(changed(*SHRUNK, 'cold_start.updates=5', assignment))


def build_blind():
  controls = (Control('blind', ('views.teacher={problem}|{refrence}:',)),)
  lib.build(dataclasses.replace(changed(*SHRUNK), controls=controls))


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    (('rollout.questions=41',), 'rollout.questions is 41.*40 training problems'),
    (
      ('source.kind=solutions', 'objective.estimator=nll', 'rollout.sampling.max_tokens=8'),
      r'longer than rollout.sampling.max_tokens \(8\)',
    ),
  ],
)
def test_what_a_control_needs_is_found_before_the_main_run(overrides, words):
  with pytest.raises(ConfigError, match=words):
    lib.build(dataclasses.replace(changed(*SHRUNK), controls=(Control('other', overrides),)))


def test_mistakes_in_the_views_of_a_control_are_found_before_the_main_run():
  with pytest.raises(ConfigError, match="views.teacher.*mean 'reference'"):
    build_blind()


# --- Controls.


def with_controls(*controls):
  return dataclasses.replace(QUICKSTART, controls=controls)


def test_a_control_with_an_unknown_field_is_named():
  control = Control('slow', ('optimizer.learning_rat=1e-5',))
  with pytest.raises(ConfigError) as caught:
    lib.validate(with_controls(Control('fine', ()), control))
  assert str(caught.value).startswith("control 'slow': 'optimizer.learning_rat' is unknown")
  assert "Did you mean 'learning_rate'?" in str(caught.value)


def test_the_settings_of_a_control_are_checked():
  with pytest.raises(ConfigError, match='optimizer.learning_rate is -1.0'):
    lib.validate(with_controls(Control('back', ('optimizer.learning_rate=-1',))))


def test_a_control_that_cannot_work_is_named():
  with pytest.raises(ConfigError, match="control 'back'.*optimizer.learning_rate is -1.0"):
    lib.validate(with_controls(Control('back', ('optimizer.learning_rate=-1',))))


def test_a_control_whose_texts_do_not_fit_is_named():
  with pytest.raises(ConfigError, match="control 'blind'.*views.teacher"):
    build_blind()


@pytest.mark.parametrize('name', ['', 'No', 'a/b', 'opsd', 'base', 'seed'])
def test_a_control_needs_a_name_that_can_be_a_folder(name):
  with pytest.raises(ConfigError, match=f'control {name!r}: a name is of lower-case letters'):
    lib.validate(with_controls(Control(name, ())))


def test_two_controls_of_one_name():
  with pytest.raises(ConfigError, match="control 'twice'.*stands once"):
    lib.validate(with_controls(Control('twice', ()), Control('twice', ())))


@pytest.mark.parametrize(
  'setting',
  [
    'data.chains.train=50',
    'seed=1',
    'evaluate.seed=2',
    'model.embed_dim=8',
    'views.student={problem}',
    'lora.rank=8',
    'lora.targets=query',
    'weights.path=/models/other',
  ],
)
def test_a_control_shares_data_model_and_test_with_the_main_run(setting):
  """A control with other problems could train on the test problems of the main run."""
  with pytest.raises(ConfigError, match=f"control 'other' changes '{setting.split('=')[0]}'"):
    lib.validate(with_controls(Control('other', (setting,))))


def test_a_control_may_take_as_many_updates_as_the_main_run():
  main = changed('loop.updates=100', 'loop.budget=updates:1000')  # of 64 tokens each
  loop = lib.with_control(main, Control('same', ()), tokens=64_000).loop
  assert parse_budget(loop).fraction(updates=999, tokens=999 * 64, seconds=0.0) < 1


def test_a_control_is_the_experiment_but_for_its_settings_and_its_budget():
  control = Control('plain', ('views.teacher={problem}:', 'objective.teacher_temperature=0.3'))
  found = configs.flatten(lib.with_control(QUICKSTART, control, tokens=1234))
  before = configs.flatten(QUICKSTART)
  differing = {name: found[name] for name in before if before[name] != found[name]}
  differing.pop('loop.max_updates', None)  # A ceiling, tested above.
  assert differing == {
    'views.teacher': '{problem}:',
    'objective.teacher_temperature': 0.3,
    'loop.budget': 'tokens:1234',
    'controls': (),
  }


def test_a_control_without_tokens_keeps_the_budget():
  assert lib.with_control(QUICKSTART, Control('same', ())).loop == QUICKSTART.loop


# --- The workbench.


def test_build_makes_the_workbench():
  setup = lib.build(changed(*SHRUNK))
  assert dict(setup.mesh.shape) == {'data': 1, 'fsdp': 8, 'tensor': 1}
  assert [len(s) for s in (setup.splits.train, setup.splits.validation, setup.splits.test)] == [40, 4, 6]
  assert setup.tokenizer.vocab_size == 20 and setup.seed == 7
  assert setup.spec.embed_dim == 8 and setup.rollout.questions == 8
  assert setup.resolved == configs.to_dict(changed(*SHRUNK))
  # Every other part of the workbench is the config of its room.
  made = {'seed', 'spec', 'mesh', 'tokenizer', 'splits', 'dropped', 'origin', 'resolved'}
  made |= {'retention', 'cleaning'}
  rooms = {f.name for f in dataclasses.fields(setup)} - made
  assert all(getattr(setup, room) == getattr(changed(*SHRUNK), room) for room in rooms)
  assert len(rooms) == 21


def test_training_problems_are_checked_against_whole_benchmarks_and_what_is_tracked(tmp_path):
  def write(name, sums):
    rows = [{'problem': f'{a}+{a + 1}*{a + 2}', 'solution': f'={a}', 'answer': str(a)} for a in sums]
    (tmp_path / name).write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return tmp_path / name

  write('train.jsonl', range(10, 70))
  whole, other = write('whole.jsonl', [200, 69, 300]), write('other.jsonl', [400, 68])
  setup = lib.build(
    changed(
      *SHRUNK,
      'data.source=files',
      f'data.path={tmp_path}/train.jsonl',
      'data.test=none',
      'data.test_problems=4',
      'data.validation_problems=4',
      'views.teacher={problem}:',
      'cold_start.updates=0',
      f'data.contamination.path={tmp_path}',
      f'data.contamination.benchmarks=whole={whole}',
      f'evaluate.retention.benchmarks=whole={whole},other={other}',
      'evaluate.retention.problems=2',
    )
  )
  found = {name: (one['problems'], one['repeated']) for name, one in setup.cleaning['repeated'].items()}
  assert found == {'test': (4, 0), 'validation': (4, 0), 'whole': (3, 1), 'other': (2, 1)}
  assert len(setup.splits.train) == 60 - 4 - 4 - 2 and len(setup.retention[0].problems) == 2
  assert setup.dropped['train'] == setup.cleaning['left_out'] and sum(setup.dropped['train'].values()) == 2


def test_a_control_shares_the_mesh_and_the_problems_of_the_main_run():
  setup = lib.build(changed(*SHRUNK))
  arm = lib.with_control(changed(*SHRUNK), Control('other', ('optimizer.learning_rate=0.5',)))
  control = lib.assemble(arm, setup.mesh, setup.splits, setup.dropped)
  assert control.mesh is setup.mesh and control.splits is setup.splits
  assert control.optimizer.learning_rate == 0.5 and control.tokenizer == setup.tokenizer


@pytest.mark.parametrize(
  ('assignments', 'words'),
  [
    (['mesh.fsdp=3'], ["'fsdp': 3", 'needs 3 devices', '8 are present', 'mesh.fsdp']),
    (['mesh.data=-1'], ['at most one of them -1']),
    (['mesh.tensor=0'], ['must be positive']),
  ],
)
def test_a_mesh_that_does_not_fit_the_devices(assignments, words):
  with pytest.raises(ConfigError) as caught:
    lib.build(changed(*SHRUNK, *assignments))
  assert all(word in str(caught.value) for word in words)


def test_build_validates():
  with pytest.raises(ConfigError, match='model.vocab_size is 3'):
    lib.build(changed(*SHRUNK, 'model.vocab_size=3'))


# --- Every setting is read by somebody.

HOLDERS = {
  'config',
  'cfg',
  'spec',
  's',
  'e',
  'experiment',
  'control',
  'scaling',
  'self',
}  # what a config is called


def config_classes(root):
  """Every dataclass in the tree of configs, with the field names that hold it."""
  found = {root: set()}
  for cls in found_so_far(found):
    for name, kind in typing.get_type_hints(cls).items():
      for part in (kind, *typing.get_args(kind)):
        if dataclasses.is_dataclass(part):
          found.setdefault(part, set()).add(name)
  return found


def found_so_far(found):
  """The keys of a dict that grows while they are gone through."""
  seen = set()
  while new := [cls for cls in found if cls not in seen]:
    seen.update(new)
    yield from new


def reads(tree):
  """(holder, attribute) of every `holder.attribute` outside functions that only validate."""
  if isinstance(tree, ast.FunctionDef) and tree.name.lstrip('_').startswith('validate'):
    if not tree.name.endswith('accuracy'):
      return
  if isinstance(tree, ast.Attribute) and isinstance(tree.ctx, ast.Load):
    owner = tree.value
    yield getattr(owner, 'attr', getattr(owner, 'id', '')), tree.attr
  for child in ast.iter_child_nodes(tree):
    yield from reads(child)


def readers(cls, holders, sources):
  """{(holder, attribute)} read in the files that deal with this config."""
  marks = [cls.__name__, *(f'.{holder}' for holder in holders)]
  mine = [tree for source, tree in sources if any(mark in source for mark in marks)]
  return {read for tree in mine for read in reads(tree)}


def unread(root, texts):
  """{(class, field)} that no source reads from something called like that config."""
  sources, missing = [(text, ast.parse(text)) for text in texts], set()
  for cls, holders in config_classes(root).items():
    found = readers(cls, holders, sources)
    missing |= {
      (cls.__name__, field.name)
      for field in dataclasses.fields(cls)
      if not any((holder, field.name) in found for holder in HOLDERS | holders)
    }
  return missing


def test_every_setting_is_read_by_somebody():
  sources = [
    path.read_text(encoding='utf-8')
    for package in ('opsd_jax', 'experiments')
    for path in (REPOSITORY / package).rglob('*.py')
  ]
  assert unread(Experiment, sources) == set()


def test_all_configs_of_an_experiment_are_looked_at():
  names = {cls.__name__ for cls in config_classes(Experiment)}
  assert {
    'Experiment',
    'Control',
    'ChainsConfig',
    'SamplingConfig',
    'OptimizerConfig',
    'ModelSpec',
    'MeshConfig',
    'MetricsConfig',
    'CheckpointConfig',
  } <= names


@dataclasses.dataclass(frozen=True)
class Inner:
  """A config whose first setting is used."""

  used: int = 0
  only_validated: int = 0
  nobody: int = 0


@dataclasses.dataclass(frozen=True)
class Outer:
  """A config that holds another."""

  inner: Inner = Inner()


USES = (
  'def validate(config):\n  assert config.only_validated > 0',
  '# Outer.\ndef use(setup, other):\n  other.nobody, config.inner = 1, 2\n'
  '  return setup.inner.used + other.nobody + config.inner',
  'def elsewhere(config):\n  return config.nobody',  # Of some other config.
)


def test_an_idle_setting_would_be_seen():
  assert unread(Outer, USES) == {('Inner', 'only_validated'), ('Inner', 'nobody')}
