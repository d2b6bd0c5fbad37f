"""The recipes of the other systems, setting by setting, against the tables that they come from.

As in `recipes_test`: rows in the words of their sources (ReNIO: arXiv 2606.23104 and its scripts; Rethinking
OPD: arXiv 2604.13016, table 2 and its script; EffOPD: arXiv 2605.11739, appendix C.2; baselines of OPSD:
arXiv 2601.18734v3 and its scripts), what is this project's choice by name, and nothing else that is not the
default.
"""

import numpy as np
import pytest

from experiments import common, recipes
from experiments.recipes import effopd, opsd_more, renio, renio_code, rethinking_opd, rethinking_opd_more
from opsd_jax import config as configs
from opsd_jax.config import ConfigError
from opsd_jax.data.schemas import NAMED
from opsd_jax.distill import wording
from opsd_jax.experiment import Experiment
from tests.experiments import model_folder
from tests.experiments.recipes_objective_test import LENGTHS, ROUNDING, ROWS, WIDTH, inputs, ours, softmax
from tests.experiments.recipes_test import EVERY_25, MARCH, OURS, PROJECTIONS, TABLES, qwen3
from tests.experiments.recipes_test import rows as opsd_rows

# --- ReNIO: what its scripts change of OPSD's release of March 2026.

RENIO = {
  'max_steps=126, linear decay to 0 over 126 steps, no warmup': {
    'loop.updates': 126,
    'optimizer.schedule': 'linear',
    'optimizer.warmup_updates': 0,
    'optimizer.decay_updates': 126,
  },
  'lr 5e-6': {'optimizer.learning_rate': 5e-6},
  'effective batch 32': {'rollout.questions': 32, 'rollout.per_question': 1},
  '<=1024 new tokens; T=1.1, top_p .95, top_k 20': {
    'rollout.sampling.max_tokens': 1024,
    'rollout.sampling.temperature': 1.1,
    'rollout.sampling.top_p': 0.95,
    'rollout.sampling.top_k': 20,
  },
  'LoRA 64/128 on seven projections': {'lora.rank': 64, 'lora.alpha': 128, 'lora.targets': PROJECTIONS},
  'save every 25': {'checkpoint.every': 25, 'checkpoint.keep_last': 6},
  'max_grad_norm .1 for 4B/8B, 1.0 for 1.7B': {'optimizer.clip_norm': (1.0, 0.1, 0.1)},
  'beta=0': {'objective.divergence': 'forward_kl', 'objective.support': 'full'},
  'entries clipped to [0, tau], .05 (.06 for 8B)': {
    'objective.entry_clip_min': 0,
    'objective.entry_clip_max': (0.05, 0.05, 0.06),
  },
  'c and tau of the weights: run_opsd_1b 2.5, 0.8; run_opsd_4b / 8b 2.0, 0.01': {
    'weigh.kind': 'renio',
    'weigh.cap': (2.5, 2.0, 2.0),
    'weigh.threshold': (0.8, 0.01, 0.01),
  },
  'kd_sgo_tem = 1.0': {'weigh.temperature': 1.0},
  'batch_mean, then min(w, 10)': {'weigh.normalise': 'batch_mean', 'weigh.largest': 10},
  'overview figure: over the batch': {'weigh.scope': 'global'},
  'all rollouts': {'weigh.keep': 'all'},
  'sample mean': {'objective.reduction': 'sample_mean'},
}
PLACE = {'opsd_qwen3_1p7b': 0, 'opsd_qwen3_4b': 1, 'opsd_qwen3_8b': 2}
R1_7B = {  # config.json of DeepSeek-R1-Distill-Qwen-7B
  'weights.published': 'deepseek-ai/DeepSeek-R1-Distill-Qwen-7B',
  'model.vocab_size': 152_064,
  'model.num_layers': 28,
  'model.embed_dim': 3584,
  'model.mlp_dim': 18_944,
  'model.num_heads': 28,
  'model.num_kv_heads': 4,
  'model.head_dim': 128,
  'model.qk_norm': False,
  'model.attention_bias': True,
  'model.rope_theta': 1e4,
  'model.norm_eps': 1e-6,
  'model.tie_embeddings': False,
}


def as_teacher(settings):
  """The settings of a student's shape, as those of a teacher."""
  return {f'teacher.{name}': value for name, value in settings.items()} | {
    'teacher.kind': 'external',
    'teacher.model.dtype': 'bfloat16',
  }


SAME_PROMPT = {'views.teacher': wording.load('opsd')['student'], 'views.teacher_thinking': False}
RUN_OPD_1B = {'weigh.cap': 2.0, 'weigh.threshold': 1.0}
RENIO_TABLES = {
  'renio_qwen3_1p7b': ('opsd_qwen3_1p7b', {}),
  'renio_qwen3_4b': ('opsd_qwen3_4b', {}),
  'renio_qwen3_8b': ('opsd_qwen3_8b', {}),
  'renio_r1_distill_qwen_7b': ('opsd_qwen3_4b', R1_7B),
  'renio_opd_qwen3_1p7b': ('opsd_qwen3_1p7b', RUN_OPD_1B | SAME_PROMPT | as_teacher(qwen3('Qwen/Qwen3-8B'))),
}


def chosen(table, place):
  """Rows as settings; of a row with several values, the one at that place."""
  several = lambda value: isinstance(value, tuple) and value != PROJECTIONS  # noqa: E731
  rows = (row.items() for row in table.values())
  return {name: value[place] if several(value) else value for row in rows for name, value in row}


def flat_views(name):
  return {f'views.{field}': value for field, value in wording.load(name).items()}


@pytest.mark.parametrize('name', RENIO_TABLES)
def test_a_recipe_of_renio_is_its_table(name):
  base, changes = RENIO_TABLES[name]
  said = opsd_rows(base) | chosen(RENIO, PLACE[base]) | changes
  whole = configs.flatten(Experiment(name=name)) | flat_views('opsd') | OURS | EVERY_25 | said
  assert configs.flatten(recipes.load(name)) == whole


# Student logits [2, 1, 0, -1, 0.5], teacher logits [0.5, 2.5, 0, -0.5, -2], entries clipped to 0 .. 0.05.
RENIO_SLOPE = [0.023390, 0.009424, 0.003797, -0.042592, 0.005981]


@pytest.mark.parametrize('name', ['renio_qwen3_1p7b', 'renio_qwen3_4b'])
def test_the_objective_of_renio_has_its_worked_numbers(name):
  student, teacher = np.float32([[[2, 1, 0, -1, 0.5]]]), np.float32([[[0.5, 2.5, 0, -0.5, -2]]])
  each, batch, slope = ours(name, student, teacher, np.zeros((1, 1), np.int32), np.int32([1]))
  assert batch == pytest.approx(0.066327, abs=2e-6) and float(each[0, 0]) == pytest.approx(batch)
  np.testing.assert_allclose(slope[0, 0], RENIO_SLOPE, atol=2e-6)


@pytest.mark.parametrize('name', [*RENIO_TABLES, 'effopd_qwen2p5_7b', 'rethinking_opd_qwen3_1p7b'])
def test_losses_and_gradients_are_the_formula(name):
  """ReNIO: entries between 0 and their bound, the mean over samples of each one's mean over tokens."""
  student, teacher, token = inputs()
  mask = np.arange(WIDTH)[None] < LENGTHS[:, None]
  logits = np.float64(student), np.float64(teacher)
  weights = mask / LENGTHS.sum()
  if name.startswith('effopd'):
    each, slope = sampled_at_1(*logits, token)
  elif name.startswith('rethinking'):
    each, slope = rewards_of_16(*logits)
  else:
    each, slope = clipped_both_ways(*logits, 0.06 if name == 'renio_qwen3_8b' else 0.05)
    weights = mask / LENGTHS[:, None] / ROWS
  found, batch, gradient = ours(name, student, teacher, token, LENGTHS)
  np.testing.assert_allclose(found, each, atol=ROUNDING)
  assert batch == pytest.approx((weights * each).sum(), abs=ROUNDING)
  np.testing.assert_allclose(gradient, weights[..., None] * slope, atol=ROUNDING)


def clipped_both_ways(zs, zt, clip):
  """sum_v clip(p_T log(p_T / p_S), 0, clip) at temperature 1.1; entries outside have no slope."""
  ps, pt = softmax(zs / 1.1), softmax(zt / 1.1)
  entry = pt * np.log(pt / ps)
  inside = (entry >= 0) & (entry <= clip)
  slope = (ps * (pt * inside).sum(-1, keepdims=True) - pt * inside) / 1.1
  return np.clip(entry, 0, clip).sum(-1), slope


def sampled_at_1(zs, zt, token):
  """-A and -A grad log p_S(y) with A = log p_T(y) - log p_S(y), held, at temperature 1."""
  ps, pt = softmax(zs), softmax(zt)
  at = lambda p: np.take_along_axis(p, token[..., None], -1)  # noqa: E731
  advantage = np.log(at(pt) / at(ps))
  picked = np.arange(zs.shape[-1]) == token[..., None]
  return -advantage[..., 0], -advantage * (picked - ps)


def rewards_of_16(zs, zt):
  """sum_k w_k d_k on the student's 16 likeliest; w renormalised on them, d = log p_S - log p_T not."""
  ps, pt = softmax(zs), softmax(zt)
  chosen = np.argsort(np.argsort(-zs, axis=-1, kind='stable'), axis=-1) < 16
  weighed = np.where(chosen, ps, 0) / np.where(chosen, ps, 0).sum(-1, keepdims=True) * np.log(ps / pt)
  total = weighed.sum(-1, keepdims=True)
  return total[..., 0], weighed - ps * total


# --- Rethinking OPD.

RETHINKING = {
  'full parameters, fp32 master params + bf16 autocast': {
    'lora.rank': 0,
    'model.dtype': 'bfloat16',
    'model.remat': 'full',
  },
  'prompt/response 1024 / 7168': {
    'views.student_tokens': 1024,
    'views.teacher_tokens': 1024,
    'rollout.sampling.max_tokens': 7168,
  },
  'global batch 64 prompts, rollouts 4': {'rollout.questions': 64, 'rollout.per_question': 4},
  'T=1.0, top_p=1.0 (top_k off)': {
    'rollout.sampling.temperature': 1.0,
    'rollout.sampling.top_p': 1.0,
    'rollout.sampling.top_k': None,
  },
  'LR 1e-6 constant, no warmup': {
    'optimizer.learning_rate': 1e-6,
    'optimizer.schedule': 'constant',
    'optimizer.warmup_updates': 0,
  },
  'AdamW .9/.999, wd .01, clip 1.0': {
    'optimizer.beta1': 0.9,
    'optimizer.beta2': 0.999,
    'optimizer.weight_decay': 0.01,
    'optimizer.clip_norm': 1.0,
  },
  'epochs 1: 17,917 rows / 64': {'loop.updates': 17_917 // 64},
  'logprob top-K 16, student; weights student_p': {
    'objective.estimator': 'reward_topk',
    'objective.divergence': 'reverse_kl',
    'objective.support': 'student_topk',
    'objective.k': 16,
    'objective.reward_weights': 'student_p',
  },
  'temperatures 1.0': {'objective.student_temperature': 1.0, 'objective.teacher_temperature': 1.0},
  'token mean': {'objective.reduction': 'token_mean'},
  'KL / entropy coef 0; one mini-batch, one epoch': {'objective.correction': 'none'},
  'save/test freq 20': {'checkpoint.every': 20, 'loop.evaluate_every': 20},
  'same prompt, enable_thinking=False; question, then the sentence to box': {
    'views.chat': True,
    'views.student_thinking': False,
    'views.teacher_thinking': False,
    'views.student': '{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}.',
    'views.teacher': '{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}.',
  },
}
HELD_OUT = {name: OURS[name] for name in ('data.test', 'data.test_problems', 'data.validation_problems')}
OURS_RETHINKING = HELD_OUT | {
  'data.source': 'files',
  'data.too_long': 'drop',
  'loop.packing': 'packed',
  'loop.micro_tokens': 32_768,
  'loop.show_every': 20,
  'rollout.decode.slots': 128,
  'grade.rules': 'strict',
  'evaluate.samples': 4,
  'evaluate.batch': 16,
  'evaluate.sampling.temperature': 0.7,
  'evaluate.sampling.top_p': 0.95,
  'evaluate.sampling.max_tokens': 7168,
}
R1_1P5B = R1_7B | {
  'weights.published': 'deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B',
  'model.vocab_size': 151_936,
  'model.embed_dim': 1536,
  'model.mlp_dim': 8960,
  'model.num_heads': 12,
  'model.num_kv_heads': 2,
}


def named(settings, published):
  return settings | {'weights.published': published}


SMALL, LARGE = qwen3('Qwen/Qwen3-1.7B'), qwen3('Qwen/Qwen3-4B')
PAIRS = {  # sections 3.1, 3.2 and 5.1
  'rethinking_opd_qwen3_1p7b': (SMALL, LARGE),
  'rethinking_opd_qwen3_1p7b_base': (named(SMALL, 'Qwen/Qwen3-1.7B-Base'), LARGE),
  'rethinking_opd_qwen3_1p7b_base_grpo': (
    named(SMALL, 'Qwen/Qwen3-1.7B-Base'),
    named(LARGE, 'lllyx/Qwen3-4B-Base-GRPO'),
  ),
  'rethinking_opd_qwen3_1p7b_sft': (named(SMALL, 'lllyx/Qwen3-1.7B-SFT'), LARGE),
  'rethinking_opd_r1_1p5b': (R1_1P5B, R1_7B),
  'rethinking_opd_r1_1p5b_skywork': (R1_1P5B, named(R1_7B, 'Skywork/Skywork-OR1-Math-7B')),
}


JUSTRL = named(R1_1P5B, 'hbx/JustRL-DeepSeek-1.5B')
REVERSE = {'about .54 to .32 - .34 over 600 steps': {'loop.updates': 600}}
ASKS_FOR_A_LINE = (
  'Solve the following math problem step by step. The last line of your response should be of the form '
  'Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n{problem}\n\nRemember '
  'to put your answer on its own line after "Answer:".'
)
DAPO_PROMPT = {'DAPO original': {'views.student': ASKS_FOR_A_LINE, 'views.teacher': ASKS_FOR_A_LINE}}
DEEPMATH = {
  'DeepMath_deduped 14,116 rows / 64': {'loop.updates': 14_116 // 64},
  'verl format': {f'data.fields.{k}': v for k, v in configs.flatten(NAMED['deepmath_verl']).items()},
}
COLD_START = {
  'teacher answers 200K prompts; 64 x 4 of ours an update': {'warm_start.updates': 782},
  'teacher rollouts, <=3 attempts per rollout': {
    'warm_start.source.kind': 'teacher',
    'warm_start.source.attempts': 3,
  },
  'no verdict': {'warm_start.source.keep': 'all'},
  'drop truncated': {'warm_start.source.reject.truncated': True},
  'needs \\boxed': {'warm_start.source.reject.lacking': '\\boxed'},
  'any line of >=20 chars occurs >=5x': {
    'warm_start.source.reject.line_chars': 20,
    'warm_start.source.reject.line_times': 5,
  },
  'any 100-char window (stride 10) occurs >=3x': {
    'warm_start.source.reject.window_chars': 100,
    'warm_start.source.reject.window_stride': 10,
    'warm_start.source.reject.window_times': 3,
  },
  'text >5000 chars: a 50-char block repeats 3x consecutively': {
    'warm_start.source.reject.block_above': 5000,
    'warm_start.source.reject.block_chars': 50,
    'warm_start.source.reject.block_times': 3,
  },
  'LR 1e-5 cosine, warmup ratio .05, epochs 1': {
    'warm_start.optimizer.learning_rate': 1e-5,
    'warm_start.optimizer.schedule': 'cosine',
    'warm_start.optimizer.warmup_updates': 40,
    'warm_start.optimizer.decay_updates': 782,
  },
  'defaults: AdamW .9/.999, wd 0, clip 1.0': {
    'warm_start.optimizer.beta1': 0.9,
    'warm_start.optimizer.beta2': 0.999,
    'warm_start.optimizer.weight_decay': 0.0,
    'warm_start.optimizer.clip_norm': 1.0,
  },
}
BASE = named(SMALL, 'Qwen/Qwen3-1.7B-Base')
MORE = {  # sections 3.2, 3.3, 4.1, 5.1 and 5.2: student, teacher, and what the section says besides
  'rethinking_opd_qwen3_1p7b_rl': (SMALL, named(LARGE, 'Keven16/Qwen3-4B-Non-Thinking-RL-Math-Step500'), {}),
  'rethinking_opd_r1_1p5b_justrl': (R1_1P5B, JUSTRL, {}),
  'rethinking_opd_r1_1p5b_justrl_dapo': (R1_1P5B, JUSTRL, DAPO_PROMPT),
  'rethinking_opd_justrl_r1_1p5b': (JUSTRL, R1_1P5B, REVERSE),
  'rethinking_opd_justrl_r1_7b': (JUSTRL, R1_7B, REVERSE),
  'rethinking_opd_qwen3_1p7b_base_deepmath': (BASE, named(LARGE, 'lllyx/Qwen3-4B-Base-GRPO'), DEEPMATH),
  'rethinking_opd_qwen3_1p7b_base_cold_start': (BASE, LARGE, COLD_START),
}
SECTIONS = {name: (*both, {}) for name, both in PAIRS.items()} | MORE


@pytest.mark.parametrize('name', SECTIONS)
def test_a_recipe_of_rethinking_opd_is_its_table(name):
  student, teacher, section = SECTIONS[name]
  fields = {f'data.fields.{k}': v for k, v in configs.flatten(NAMED['dapo']).items()}
  said = fields | chosen(RETHINKING, 0) | student | as_teacher(teacher)
  said |= {setting: value for row in section.values() for setting, value in row.items()}
  whole = configs.flatten(Experiment(name=name)) | OURS_RETHINKING | said
  assert configs.flatten(recipes.load(name)) == whole


# --- EffOPD.

EFFOPD = {
  'LoRA is not used': {'lora.rank': 0, 'model.dtype': 'bfloat16', 'model.remat': 'full'},
  'prompt 2048, response 16,384': {
    'views.student_tokens': 2048,
    'views.teacher_tokens': 2048,
    'rollout.sampling.max_tokens': 16_384,
  },
  'batch 1024 prompts x 1 rollout, mini-batch 1024': {'rollout.questions': 1024, 'rollout.per_question': 1},
  'lr 1e-6, no warmup': {
    'optimizer.learning_rate': 1e-6,
    'optimizer.schedule': 'constant',
    'optimizer.warmup_updates': 0,
  },
  'T=1.0, top_p 1.0': {'rollout.sampling.temperature': 1.0, 'rollout.sampling.top_p': 1.0},
  'save/test every 2 steps': {'checkpoint.every': 2, 'loop.evaluate_every': 2},
  'sampled-token policy gradient of reverse KL': {
    'objective.estimator': 'divergence',
    'objective.divergence': 'reverse_kl',
    'objective.support': 'sampled',
    'objective.student_temperature': 1.0,
    'objective.teacher_temperature': 1.0,
  },
  'token-level rollout importance correction, threshold 5.0': {
    'objective.correction': 'token',
    'objective.correction_cap': 5.0,
  },
  'enable_thinking=False, same prompt': RETHINKING[
    'same prompt, enable_thinking=False; question, then the sentence to box'
  ],
  'max_test_iterations=5; W + 2k delta; >= (paper)': {
    'controller.kind': 'effopd',
    'controller.candidates': 5,
    'controller.accept': 'at_least',
    'controller.at': (),
  },
  'all W (paper); optimizer moments left as they are': {
    'controller.parameters': 'all',
    'controller.moments': 'keep',
  },
  'D_v of 50 training examples, one sample each': {'controller.problems': 50, 'controller.samples': 1},
}
# Not published: weight decay, the bound on the gradient's norm, updates (30 to 40 by the text).
OURS_EFFOPD = OURS_RETHINKING | {
  'data.fields.problem': 'question',
  'data.fields.solution': None,
  'data.fields.answer': 'final_answer',
  'loop.updates': 40,
  'loop.show_every': 10,
  'grade.rules': 'opsd',
  'optimizer.weight_decay': 0.0,
  'optimizer.clip_norm': 1.0,
  'evaluate.sampling.temperature': 1.0,
  'evaluate.sampling.top_p': 1.0,
  'evaluate.sampling.max_tokens': 16_384,
}
QWEN2P5_7B = R1_7B | {'weights.published': 'Qwen/Qwen2.5-7B', 'model.rope_theta': 1e6}
EXOPD = {'controller.kind': 'none', 'objective.extrapolation': 1.25}  # lambda=1.25


@pytest.mark.parametrize(('name', 'changes'), [('effopd_qwen2p5_7b', {}), ('exopd_qwen2p5_7b', EXOPD)])
def test_a_recipe_of_effopd_is_its_table(name, changes):
  teacher = as_teacher(named(QWEN2P5_7B, 'Open-Reasoner-Zero/Open-Reasoner-Zero-7B'))
  rows = {k: v for row in EFFOPD.values() for k, v in row.items()}
  said = rows | QWEN2P5_7B | teacher | changes
  whole = configs.flatten(Experiment(name=name)) | OURS_EFFOPD | said
  assert configs.flatten(recipes.load(name)) == whole


# --- Around OPSD.

SFT = {
  'lr 5e-6, LoRA': {'optimizer.learning_rate': 5e-6, 'lora.rank': 64},
  'batch 32': {'rollout.questions': 32},
  '4 epochs': {'loop.updates': 3725},
  'max_len 16,000': {'rollout.sampling.max_tokens': 16_000},
  'COT_Reason (SFT target)': {
    'source.kind': 'solutions',
    'source.completion': '{COT_Reason}',
    'data.fields.meta': ('COT_Reason',),
    'objective.estimator': 'nll',
  },
}
GRPO = {
  'lr 5e-6, LoRA 64/128': {'optimizer.learning_rate': 5e-6, 'lora.rank': 64},
  '32 completions per step, 8 generations per prompt': {
    'method': 'grpo',
    'rollout.questions': 4,
    'rollout.per_question': 8,
  },
  'completion <= 16,000': {'rollout.sampling.max_tokens': 16_000},
  'T=1.2': {
    'rollout.sampling.temperature': 1.2,
    'objective.student_temperature': 1.2,
    'rollout.sampling.top_p': 1.0,
    'rollout.sampling.top_k': None,
  },
  'KL beta=0, loss_type grpo, group std scaling': {
    'grpo.kl': 0,
    'grpo.reduction': 'sample_mean',
    'grpo.scale': 'group',
    'grpo.steps': 1,
    'grpo.clip_low': 0.2,
    'grpo.clip_high': 0.2,
  },
  'peak within 500 steps': {'loop.updates': 500},
}
BARE = {  # of OPSD's objective nothing is left
  'objective.entry_clip_max': None,
  'objective.student_temperature': 1.0,
  'objective.teacher_temperature': 1.0,
}
THINKS = {'views.student_thinking': True}
AROUND = {
  'opsd_sft_qwen3_1p7b': (
    SFT,
    BARE | THINKS | {f: 500 for f in ('loop.evaluate_every', 'loop.show_every', 'checkpoint.every')},
  ),
  'opsd_grpo_qwen3_1p7b': (
    GRPO,
    BARE
    | THINKS
    | {f: 100 for f in ('loop.evaluate_every', 'loop.show_every', 'checkpoint.every')}
    | {'checkpoint.keep_last': 5},
  ),
  'opsd_qwen3_1p7b_reason_first': (
    {'analysis of <= 4096 tokens': {'views.analysis_tokens': 4096}},
    {'views.teacher_tokens': 8192, 'views.teacher_thinking': False},
  ),
}


@pytest.mark.parametrize('name', AROUND)
def test_what_stands_around_opsd_is_its_table(name):
  table, changes = AROUND[name]
  rows = {k: v for row in table.values() for k, v in row.items()}
  said = opsd_rows('opsd_qwen3_1p7b') | changes | rows
  found = configs.flatten(recipes.load(name))
  texts = flat_views('opsd') | {f: found[f] for f in ('views.teacher', 'views.analysis')}
  assert found == configs.flatten(Experiment(name=name)) | texts | OURS | EVERY_25 | said
  if name.endswith('reason_first'):
    assert '{solution}' in found['views.analysis'] and '{solution}' not in found['views.teacher']
  else:
    assert texts == flat_views('opsd') | {'views.analysis': ''}


# --- ReNIO's coding task: what differs from its mathematics, and its GRPO.

CODE = {
  'problems of OpenThoughts-114k, its code part': {
    'data.fields.answer': 'answer',
    'data.fields.tests': 'test_cases',
    'data.fields.starter': 'starter_code',
  },
  'ours: ground_truth_solution is null for programs, and one problem with other tests is a copy': {
    'data.fields.solution': 'deepseek_solution',
    'data.filters.conflicts': 'keep',
  },
  'reward: fraction of <= 5 tests passed, stop after 3 consecutive failures, 10 s timeout': {
    'grade.rules': 'programs',
    'grade.tests': 5,
    'grade.failures': 3,
    'grade.programs.call_seconds': 10,
  },
}
CODE_GRPO = {
  'lr 5e-6, LoRA 64/128': {'optimizer.learning_rate': 5e-6, 'lora.rank': 64},
  '1xGA8x4, 8 generations': {'method': 'grpo', 'rollout.questions': 4, 'rollout.per_question': 8},
  'num_iterations=2': {'grpo.steps': 2},
  'T=1.2, completion 16,000, prompt 2048': {
    'rollout.sampling.temperature': 1.2,
    'objective.student_temperature': 1.2,
    'rollout.sampling.max_tokens': 16_000,
    'views.student_tokens': 2048,
  },
  'KL 0, loss_type grpo, group scaling': {
    'grpo.kl': 0,
    'grpo.reduction': 'sample_mean',
    'grpo.scale': 'group',
    'grpo.clip_low': 0.2,
    'grpo.clip_high': 0.2,
  },
  'max_steps 301, two steps an update': {'loop.updates': 150, 'optimizer.decay_updates': 301},
}
CODE_GRPO_OURS = {
  'views.student_thinking': True,
  'rollout.sampling.top_p': 1.0,
  'rollout.sampling.top_k': None,
  'loop.evaluate_every': 50,
  'loop.show_every': 50,
  'checkpoint.every': 50,
  'checkpoint.keep_last': 3,
}
SAME_CODE_PROMPT = {'views.teacher': wording.load('renio_code')['student'], 'views.teacher_thinking': False}
CODE_TABLES = {
  'renio_code_qwen3_1p7b': {},
  'renio_code_opd_qwen3_1p7b': RUN_OPD_1B | SAME_CODE_PROMPT | as_teacher(qwen3('Qwen/Qwen3-8B')),
  'renio_code_grpo_qwen3_1p7b': CODE_GRPO_OURS,
}


@pytest.mark.parametrize('name', CODE_TABLES)
def test_a_recipe_of_programs_is_its_table(name):
  said = opsd_rows('opsd_qwen3_1p7b') | chosen(RENIO, 0)
  if name == 'renio_code_grpo_qwen3_1p7b':  # of ReNIO's weights and of OPSD's objective nothing is left
    left = {f: v for f, v in said.items() if not f.startswith(('weigh.', 'objective.'))}
    said = left | chosen(CODE_GRPO, 0)
  said |= chosen(CODE, 0) | CODE_TABLES[name]
  ours = {f: v for f, v in (OURS | EVERY_25).items() if f not in said}
  found = configs.flatten(recipes.load(name))
  assert found == configs.flatten(Experiment(name=name)) | flat_views('renio_code') | ours | said


def test_the_teacher_of_programs_reads_the_parts_in_order():
  views = wording.load('renio_code')
  parts = [
    'Problem: {problem}',
    'Begin of',
    '{solution}',
    'End of',
    'understand the algorithm',
    'Do not copy',
  ]
  parts += ['from scratch', 'in your own words', 'step by step', 'edge cases', 'Think about', '```python']
  places = [views['teacher'].index(part) for part in parts]
  assert places == sorted(places) and views['teacher'].endswith(views['student'].split('\n\n')[-1])
  for kind in ('function', 'standard input'):  # which of both is wanted no test says to the student
    assert kind in views['student']


# --- All of them.

FAMILIES = (effopd, opsd_more, renio, renio_code, rethinking_opd, rethinking_opd_more)
EVERY = [make.__name__ for family in FAMILIES for make in family.RECIPES]


def test_every_recipe_has_a_table():
  tables = {*RENIO_TABLES, *CODE_TABLES, *SECTIONS, *AROUND}
  assert set(EVERY) == tables | {'effopd_qwen2p5_7b', 'exopd_qwen2p5_7b'}
  assert not set(EVERY) & set(TABLES) and MARCH


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return str(model_folder.write_model(tmp_path_factory.mktemp('model')))


@pytest.mark.parametrize('name', EVERY)
def test_a_recipe_can_run_on_models_of_ones_own_and_says_what_is_missing(model, name):
  recipe, data = recipes.load(name), 'data.path=/data'
  with pytest.raises(ConfigError, match='weights.path is none.*--model=FOLDER'):
    common.with_settings(recipe, [data])
  own = [*common.model_settings(model), 'weights.published=none', data]
  if recipe.teacher.kind != 'external':
    common.with_settings(recipe, own)
    return
  with pytest.raises(ConfigError, match='teacher.weights.path is none.*teacher.weights.path=FOLDER'):
    common.with_settings(recipe, own)
  teacher = [f'teacher.model={model}', f'teacher.weights.path={model}']
  with pytest.raises(ConfigError, match='`teacher.model` describes another.*teacher.weights.published=none'):
    common.with_settings(recipe, [*own, *teacher])
  common.with_settings(recipe, [*own, *teacher, 'teacher.weights.published=none'])
