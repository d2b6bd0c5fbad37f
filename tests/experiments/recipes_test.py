"""Every recipe of OPSD, setting by setting, against the table that it comes from.

The tables are those of the two releases: what the scripts of the code and the appendix of the paper say
(arXiv 2601.18734: v3, table 6, and the README and scripts of March 2026; v1 and v2, and the scripts of
January). They are transcribed here row by row, in the words of their sources and as settings. Where the
models differ a row has one value for each. What no row says is listed as this project's choice, and
everything else must be what an experiment has by default: nothing in a recipe is left unsaid.
"""

import dataclasses
import re

import pytest

from experiments import common, recipes
from experiments.recipes import opsd, opsd_2026_01
from opsd_jax import config as configs
from opsd_jax.config import ConfigError
from opsd_jax.distill import wording
from opsd_jax.experiment import Experiment, build
from opsd_jax.train import state
from opsd_jax.train.config import OptimizerConfig
from tests.experiments import model_folder

PROJECTIONS = ('query', 'key', 'value', 'out', 'gate', 'up', 'down')

# config.json of the models, as published: layers, width, MLP, heads, tied.
QWEN3 = {
  'Qwen/Qwen3-1.7B': (28, 2048, 6144, 16, True),
  'Qwen/Qwen3-4B': (36, 2560, 9728, 32, True),
  'Qwen/Qwen3-8B': (36, 4096, 12288, 32, False),
}


def qwen3(published):
  layers, width, mlp, heads, tied = QWEN3[published]
  return {
    'weights.published': published,
    'model.vocab_size': 151_936,
    'model.num_layers': layers,
    'model.embed_dim': width,
    'model.mlp_dim': mlp,
    'model.num_heads': heads,
    'model.num_kv_heads': 8,
    'model.head_dim': 128,
    'model.qk_norm': True,
    'model.rope_theta': 1e6,
    'model.norm_eps': 1e-6,
    'model.tie_embeddings': tied,
  }


# Rows that both releases have.
SHARED = {
  'LoRA r=64, alpha=128; q,k,v,o,gate,up,down projections': {
    'lora.rank': 64,
    'lora.alpha': 128,
    'lora.targets': PROJECTIONS,
  },
  'optimizer AdamW, defaults (beta .9/.999, eps 1e-8, wd 0)': {
    'optimizer.beta1': 0.9,
    'optimizer.beta2': 0.999,
    'optimizer.epsilon': 1e-8,
    'optimizer.weight_decay': 0,
  },
  # The code's linear decay over 30 epochs; that it is constant for this long is tested below.
  'linear decay, no warmup, over 30 epochs': {
    'optimizer.schedule': 'constant',
    'optimizer.warmup_updates': 0,
    'optimizer.decay_updates': 0,
  },
  'sampling T=1.1, top_p .95, top_k 20': {
    'rollout.sampling.temperature': 1.1,
    'rollout.sampling.top_p': 0.95,
    'rollout.sampling.top_k': 20,
    'rollout.sampling.min_p': 0,
  },
  'both logits divided by the sampling temperature': {
    'objective.student_temperature': 1.1,
    'objective.teacher_temperature': 1.1,
  },
  'full vocabulary': {'objective.support': 'full', 'objective.k': 0},
  'rollouts of the current student alone, synced every step': {
    'rollout.per_question': 1,
    'rollout.engine.url': None,
    'objective.correction': 'none',
    'cold_start.updates': 0,
  },
  'token mean': {'objective.reduction': 'token_mean'},
  'precision bf16, gradient checkpointing': {'model.dtype': 'bfloat16', 'model.remat': 'full'},
  'data: fields problem, solution, Answer': {
    'data.source': 'files',
    'data.fields.problem': 'problem',
    'data.fields.solution': 'solution',
    'data.fields.answer': 'Answer',
    'data.train': 'train',
  },
}

# A row that says something else for each model has a tuple here: 1.7B, 4B, 8B.
MARCH = SHARED | {
  'LR 5e-6': {'optimizer.learning_rate': 5e-6},
  'effective batch 32 prompts, 1 rollout each': {'rollout.questions': 32},
  'steps ~100, checkpoint every 25': {
    'loop.updates': 100,
    'loop.budget': None,
    'checkpoint.every': 25,
    'checkpoint.keep_last': 4,
  },
  'rollout <= 1024 new tokens': {'rollout.sampling.max_tokens': 1024},
  'grad clip 0.1 for 4B/8B; default 1.0 for 1.7B': {'optimizer.clip_norm': (1.0, 0.1, 0.1)},
  'clip .05 / .05 / .06, each entry, upper only': {
    'objective.entry_clip_max': (0.05, 0.05, 0.06),
    'objective.entry_clip_min': None,
    'objective.token_clip': None,
  },
  'forward KL (beta 0)': {'objective.divergence': 'forward_kl'},
  'fixed_teacher: adapters off': {'teacher.kind': 'frozen'},
  'student template thinking off, teacher template thinking on': {
    'views.chat': True,
    'views.student_thinking': False,
    'views.teacher_thinking': True,
    'views.student_opening': '',
    'views.teacher_opening': '',
  },
}

# run_opsd_1b and run_opsd; the scripts of EMA and top-k are changes to them.
JANUARY = SHARED | {
  'lr 2e-4': {'optimizer.learning_rate': 2e-4},
  '8x2x2=32, 8x1x4=32': {'rollout.questions': 32},
  'tokens 2048 (1.7B), 1024 (4B)': {'rollout.sampling.max_tokens': (2048, 1024)},
  'beta .5': {'objective.divergence': 'jsd', 'objective.beta': 0.5},
  'no clip': {
    'objective.entry_clip_max': None,
    'objective.entry_clip_min': None,
    'objective.token_clip': None,
  },
  'fixed teacher': {'teacher.kind': 'frozen'},
  'save every 50; results of 100 to 500': {
    'loop.updates': 500,
    'loop.budget': None,
    'checkpoint.every': 50,
    'checkpoint.keep_last': 10,
  },
  'grad clip: default of the trainer': {'optimizer.clip_norm': 1.0},
  'template defaults': {
    'views.chat': True,
    'views.student_thinking': None,
    'views.teacher_thinking': None,
    'views.student_opening': '',
    'views.teacher_opening': '',
  },
}

# What no source says, or says in a way that does not carry over: see the top of the recipes' files.
OURS = {
  'data.test': None,
  'data.test_problems': 128,
  'data.validation_problems': 64,
  'data.too_long': 'drop',
  'views.student_tokens': 1024,  # the published budget of a prompt is 20,000
  'views.teacher_tokens': 4096,
  'loop.packing': 'packed',  # does not change the loss
  'grade.rules': 'opsd',
  'evaluate.samples': 4,
  'evaluate.batch': 16,
  'evaluate.sampling.temperature': 1.0,
  'evaluate.sampling.top_p': 0.95,
  'evaluate.sampling.max_tokens': 2048,
}
EVERY_25 = {'loop.evaluate_every': 25, 'loop.show_every': 25}
EVERY_50 = {'loop.evaluate_every': 50, 'loop.show_every': 50}
LIVE = {'teacher.kind': 'live'}
# Table 4 and the sampled-token loss: no clip, reverse KL of the token that was drawn.
SAMPLED = {
  'objective.divergence': 'reverse_kl',
  'objective.support': 'sampled',
  'objective.entry_clip_max': None,
  'rollout.sampling.max_tokens': 2048,
}
EMA = {'rollout.questions': 8, 'teacher.kind': 'ema', 'teacher.ema_decay': 0.999}  # 2x1x4=8
TOP_K = {'objective.support': 'teacher_topk', 'objective.k': 50, 'objective.tail': 'renormalise'}

SMALL, MIDDLE, LARGE = QWEN3
TABLES = {  # recipe: its table, its model (and place in a row of several), wording, and what differs
  'opsd_qwen3_1p7b': (MARCH, SMALL, 'opsd', EVERY_25),
  'opsd_qwen3_4b': (MARCH, MIDDLE, 'opsd', EVERY_25),
  'opsd_qwen3_8b': (MARCH, LARGE, 'opsd', EVERY_25),
  'opsd_qwen3_1p7b_live': (MARCH, SMALL, 'opsd', EVERY_25 | LIVE),
  'opsd_qwen3_4b_sampled': (MARCH, MIDDLE, 'opsd', EVERY_25 | SAMPLED),
  'opsd_2026_01_qwen3_1p7b': (JANUARY, SMALL, 'opsd_2026_01', EVERY_50),
  'opsd_2026_01_qwen3_4b': (JANUARY, MIDDLE, 'opsd_2026_01', EVERY_50),
  'opsd_2026_01_qwen3_4b_ema': (JANUARY, MIDDLE, 'opsd_2026_01', EVERY_50 | EMA),
  'opsd_2026_01_qwen3_1p7b_topk': (JANUARY, SMALL, 'opsd_2026_01', EVERY_50 | TOP_K),
}


def rows(name):
  """What a recipe's table says, as settings, and after it what this recipe changes of that."""
  table, published, _, changes = TABLES[name]
  place = list(QWEN3).index(published)
  several = lambda value: isinstance(value, tuple) and value != PROJECTIONS  # noqa: E731
  said = {
    setting: value[place] if several(value) else value
    for row in table.values()
    for setting, value in row.items()
  }
  return said | qwen3(published) | changes


@pytest.mark.parametrize('name', TABLES)
def test_a_recipe_is_its_table_line_by_line(name):
  found = configs.flatten(recipes.load(name))
  said, texts = rows(name), {f'views.{k}': v for k, v in wording.load(TABLES[name][2]).items()}
  assert said.keys() <= found.keys(), 'every line is a setting'
  assert {setting: found[setting] for setting in said} == said
  whole = configs.flatten(Experiment(name=name)) | texts | OURS | said
  assert found == whole, 'what no line says is ours by name, or the default'


def test_every_recipe_of_the_family_has_a_table():
  assert set(TABLES) == {make.__name__ for make in (*opsd.RECIPES, *opsd_2026_01.RECIPES)}


def test_no_line_says_what_is_ours():
  assert not any(OURS.keys() & rows(name).keys() for name in TABLES)


@pytest.mark.parametrize(('updates', 'kept'), [(100, 0.996), (500, 0.98)])
def test_the_published_decay_is_hardly_one(updates, kept):
  """Linear to 0 over 30 epochs of 30,000 problems in batches of 32, of which so few updates are run."""
  decay = 30 * (30_000 // 32)
  linear = state.schedule(OptimizerConfig(5e-6, 'linear', decay_updates=decay))
  constant = state.schedule(OptimizerConfig(5e-6, 'constant'))
  assert kept < float(linear(updates) / constant(updates)) < 1


# What a user meets.


@pytest.mark.parametrize('name', recipes.names())
def test_a_recipe_goes_by_its_name_and_says_what_it_is(name):
  assert recipes.load(name).name == name
  text = recipes.find()[name].text
  said = ' '.join(text.split())
  assert recipes.summary(name).endswith(('.', ').')) and recipes.source(name)
  for part in ('Command: ', 'Cost: '):
    assert f'\n{part}' in text, part
  assert 'not measured here' in said.lower() or 'Expected' in said
  named = re.findall(r'--experiment=(\w+)', text)
  assert set(named) <= {name}, 'a command for another recipe'


def test_two_recipes_never_share_a_name():
  made = [recipe.make for recipe in recipes.find().values()]
  assert len(made) == len(set(made))


def test_the_list_has_two_lines_of_every_recipe():
  lines = common.listing().split('\n')
  assert len(lines) == 2 * len(recipes.names()) and max(map(len, lines)) <= 135
  at = [line.split()[0] for line in lines].index('opsd_qwen3_4b:')
  assert lines[at].endswith(': OPSD of March 2026 on Qwen3-4B: as on 1.7B, gradients clipped at norm 0.1.')
  assert lines[at + 1].split()[:3] == ['from', 'arXiv', '2601.18734v3,']


def test_an_unknown_recipe_of_a_family_is_named():
  with pytest.raises(ConfigError, match="Did you mean 'opsd_qwen3_8b'"):
    recipes.load('opsd_qwen3_8')


@pytest.mark.parametrize('name', TABLES)
def test_a_recipe_without_its_weights_says_where_to_get_them(name):
  published = TABLES[name][1]
  with pytest.raises(ConfigError) as caught:
    common.with_settings(recipes.load(name), ['data.path=/nowhere'])
  assert all(word in str(caught.value) for word in ('weights.path is none', published, '--model=FOLDER'))


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return str(model_folder.write_model(tmp_path_factory.mktemp('model')))


def test_another_model_is_not_the_recipe(model):
  with pytest.raises(ConfigError) as caught:
    common.with_settings(recipes.load('opsd_qwen3_1p7b'), common.model_settings(model))
  said = str(caught.value)
  assert '--experiment=opsd_qwen3_1p7b is for Qwen/Qwen3-1.7B' in said
  assert 'num_layers: 28 -> 2' in said and '--set=weights.published=none' in said


@pytest.mark.parametrize('name', TABLES)
def test_a_recipe_can_run_on_a_model_of_ones_own(model, name):
  settings = [*common.model_settings(model), 'weights.published=none', 'data.path=/data/openthoughts']
  changed = common.with_settings(recipes.load(name), settings)
  assert changed.weights.path == changed.tokenizer.path == model and changed.model.num_layers == 2
  kept = dataclasses.replace(recipes.load(name), **{f: getattr(changed, f) for f in MODEL_FIELDS})
  assert changed == kept, 'nothing but the model and the data'


MODEL_FIELDS = ('model', 'weights', 'tokenizer', 'data')


def test_data_must_be_named_too(model):
  settings = [*common.model_settings(model), 'weights.published=none']
  with pytest.raises(ConfigError, match='data.path is none; name a file'):
    common.with_settings(recipes.load('opsd_qwen3_1p7b'), settings)


def test_the_fields_of_the_data_set_make_problems(model, tmp_path):
  row = dict(problem='What is {} + 1?', solution='{} + 1 = {}', Answer='{}', COT_Reason='<think>')
  many = [
    {k: v.format(*((i, i + 1) if k != 'Answer' else (i + 1,))) for k, v in row.items()} for i in range(300)
  ]
  model_folder.write_lines(tmp_path / 'train.jsonl', many)
  settings = [*common.model_settings(model), 'weights.published=none', f'data.path={tmp_path}']
  splits = build(common.with_settings(recipes.load('opsd_qwen3_1p7b'), settings)).splits
  assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [300 - 64 - 128, 64, 128]
  one = splits.train[0]
  assert int(one.answer) == int(one.problem.split()[2]) + 1 and one.solution.endswith(f'= {one.answer}')
