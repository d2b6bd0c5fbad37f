"""The choices that make a distillation method."""

import dataclasses
from typing import Literal, NamedTuple, get_args

from kernels.linear_divergence import api as divergence
from kernels.linear_divergence import reference
from kernels.linear_divergence.spec import MODES, Kind, Mode, Support, Tail
from opsd_jax.config import ConfigError, require, require_choice
from opsd_jax.distill import wording
from opsd_jax.models import spec as specs
from opsd_jax.models import weights as weights_room
from opsd_jax.models.spec import ModelSpec
from opsd_jax.models.weights import WeightsConfig

Estimator = Literal['divergence', 'reward_topk', 'nll']
Overlap = Literal['intersection', 'symmetric_difference']  # supports that rewards alone have
Share = Literal['student_p', 'teacher_p', 'none']
REWARD_SUPPORTS = ('student_topk', 'teacher_topk', 'union', *get_args(Overlap))


@dataclasses.dataclass(frozen=True)
class ViewsConfig:
  """What the student and the teacher see, as templates.

  Fields in braces: `{problem}`, `{solution}`, `{answer}` and any of the problem's `meta` texts; a brace
  of the text itself is doubled. `--set=views=NAME` takes the wording of a preset or of a TOML file. The
  teacher's template may also show what `distill.privilege` lists.

  Attributes:
    student: the question alone.
    teacher: the question and privileged information; equal to `student` for no privilege.
    chat: the texts are the user's turn of a conversation, which the model's chat template renders;
      without it they are the whole prompt.
    system: text of the system turn, with `chat`; empty for none.
    student_thinking: the template's switch for thinking; none leaves it to the template.
    teacher_thinking: the same for the teacher.
    student_opening: what the completion is taken to begin with: appended to the prompt as it is.
    teacher_opening: the same for the teacher, such as `<think>` where its template expects that first.
    student_tokens: width that every student prompt is padded to.
    teacher_tokens: width that every teacher prompt is padded to.
    solution_fraction: share of the solution's characters, from its beginning, in `{solution_start}`.
    feedback_right: text of `{feedback}` for a row whose answer is right.
    feedback_wrong: the same for any other row.
    analysis: what the teacher is asked before it teaches (OPSD's reason-first): its own answer stands
      between this prompt and `teacher`, which is then appended as it is. Empty for none.
    analysis_tokens: budget of that answer.
  """

  student: str = '{problem}:'
  teacher: str = '{problem}|{reference}:'
  chat: bool = False
  system: str = ''
  student_thinking: bool | None = None
  teacher_thinking: bool | None = None
  student_opening: str = ''
  teacher_opening: str = ''
  student_tokens: int = 16
  teacher_tokens: int = 32
  solution_fraction: float = 1.0
  feedback_right: str = ''
  feedback_wrong: str = ''
  analysis: str = ''
  analysis_tokens: int = 0

  def named(self, name: str) -> 'ViewsConfig':
    """The wording of a preset, or of a TOML file; the widths stay.

    Raises:
      ConfigError: there is no such preset or file, or the file does not hold a wording.
    """
    return dataclasses.replace(self, **wording.load(name))


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
  """Whose weights score the rollouts.

  Attributes:
    kind: `frozen` initial weights; `ema` of the student, equal to it at step 0; `live`: the
      student's current weights; `external`: another model of the same vocabulary, which stays as it is.
    ema_decay: share of the old average kept at each update.
    model: shape and compute dtype of an external teacher, in which its weights are held.
    weights: of an external teacher; where they have no path, `teacher_start` makes them.
  """

  kind: Literal['frozen', 'ema', 'live', 'external'] = 'frozen'
  ema_decay: float = 0.999
  model: ModelSpec = ModelSpec()
  weights: WeightsConfig = WeightsConfig()


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  """What is minimised at every sampled position, and how positions are averaged.

  Conventions: forward KL is KL(teacher || student), reverse KL is KL(student || teacher), JSD mixes
  with weight `beta` on the teacher (OPSD, paper Eq. 7).

  Attributes:
    estimator: `divergence`, between two distributions and differentiated as it stands; `reward_topk`: a
      detached reward for each entry of the support, and the policy gradient of all of them
      (`distill.topk_reward`), which is of `divergence=reverse_kl`; or `nll`: the completion's own tokens
      (cross-entropy, as in supervised fine-tuning), with no teacher's pass, where the settings of the
      divergence are not read.
    divergence: `forward_kl`, `reverse_kl`, `both_kl` (mixed by `beta`) or `jsd`.
    beta: the teacher's weight in the JSD mixture, or the forward KL's in both, strictly between 0 and 1.
    support: `full` vocabulary, `teacher_topk`, `student_topk`, the `union` of these, or the `sampled` token
      alone (an estimate of the full divergence and of its gradient, for rollouts drawn from the student
      at `student_temperature`). Rewards may also take the `intersection` of the two top-ks, or what is
      one's alone, the `symmetric_difference`.
    k: size of a top-k support, 0 with `full` and `sampled`.
    tail: `renormalise` both distributions on the top-k, or add a `bucket` for the rest.
    reward_weights: what a reward is weighed by: the student's probability, renormalised on the support
      (`student_p`), the teacher's (`teacher_p`, which is no forward KL), or all alike (`none`).
    student_temperature: divides the student's logits in the loss.
    teacher_temperature: divides the teacher's logits in the loss.
    entry_clip_min: lower bound on each vocabulary entry's contribution, before the sum.
    entry_clip_max: upper bound on each vocabulary entry's contribution, before the sum.
    token_clip: upper bound on each token's divergence, after the sum.
    reduction: `token_mean` over all sampled tokens of the global batch, or `sample_mean`: the mean
      over samples of each sample's token mean.
    extrapolation: λ above 0 moves the teacher away from the initial weights: the target's log-probs are
      r + λ(t - r), where these have r and the teacher t, for `reverse_kl` of the `sampled` token (ExOPD,
      arXiv 2602.12125: 1.25; on JSON a λ above 1.22 made models collapse, arXiv 2605.08737). 1 spares the
      pass that scores by the initial weights.
    correction: `token` multiplies each token's loss by its capped importance weight, for rollouts that older
      weights or another program drew (`distill.correction`).
    correction_cap: largest such weight.
    chunk_tokens: rows whose logits exist at a time, or as many numbers in tiles of the vocabulary.
    mode: `memory` computes logits again for the gradients; `speed` makes these while the logits exist.
    statistics: report what the loss itself does not need too: divergences and entropies of the full
      vocabulary, log-probs of the sampled token, masses, agreement.
    implementation: of the kernel, or several between commas, of which the first that supports the
      objective is taken; none lets it choose.
  """

  estimator: Estimator = 'divergence'
  divergence: Kind = 'forward_kl'
  beta: float = 0.5
  support: Support | Overlap = 'full'
  k: int = 0
  tail: Tail = 'renormalise'
  reward_weights: Share = 'student_p'
  student_temperature: float = 1.0
  teacher_temperature: float = 1.0
  entry_clip_min: float | None = None
  entry_clip_max: float | None = None
  token_clip: float | None = None
  reduction: Literal['token_mean', 'sample_mean'] = 'token_mean'
  extrapolation: float = 1.0
  correction: Literal['none', 'token'] = 'none'
  correction_cap: float = 2.0
  chunk_tokens: int = 1024
  mode: Mode = 'memory'
  statistics: bool = True
  implementation: str | None = None


class Softcaps(NamedTuple):
  """`ModelSpec.final_softcap` of the student and of its teacher."""

  student: float | None
  teacher: float | None


def divergence_spec(
  config: ObjectiveConfig, valid_vocab: int, softcaps: Softcaps = Softcaps(None, None)
) -> divergence.DivergenceSpec:
  """The part of the objective that the kernel computes."""
  return divergence.DivergenceSpec(
    kind=config.divergence,
    beta=config.beta,
    support=config.support,
    k=config.k,
    tail=config.tail,
    student_temperature=config.student_temperature,
    teacher_temperature=config.teacher_temperature,
    entry_clip_min=config.entry_clip_min,
    entry_clip_max=config.entry_clip_max,
    student_softcap=softcaps.student,
    teacher_softcap=softcaps.teacher,
    valid_vocab=valid_vocab,
  )


def implementations(config: ObjectiveConfig) -> tuple[str, ...] | None:
  """Names of the kernel's implementations, the preferred first; None lets it choose."""
  return None if config.implementation is None else tuple(config.implementation.split(','))


def validate_objective(config: ObjectiveConfig, vocab: int) -> None:
  """Raises `ConfigError` for an objective that is not defined, not sound or not computable."""
  require_choice('objective.estimator', config.estimator, get_args(Estimator))
  check = _validate_reward if config.estimator == 'reward_topk' else _validate_divergence
  check(config, vocab)
  require(
    config.token_clip is None or config.token_clip > 0,
    f'objective.token_clip is {config.token_clip}; it must be positive, or none.',
  )
  if config.estimator == 'nll':
    for name, default in (('token_clip', None), ('extrapolation', 1.0)):
      require(
        getattr(config, name) == default,
        f'objective.{name} is {getattr(config, name)}, which objective.estimator=nll does not have; leave it '
        'out.',
      )
  require_choice('objective.reduction', config.reduction, ('token_mean', 'sample_mean'))
  require(
    config.extrapolation > 0, f'objective.extrapolation is {config.extrapolation}; it must be positive.'
  )
  require(
    config.extrapolation == 1 or (config.support, config.divergence) == ('sampled', 'reverse_kl'),
    f'objective.extrapolation is {config.extrapolation}, which is defined for the reverse KL of the sampled '
    f'token, but objective.support is {config.support!r} and objective.divergence {config.divergence!r}; set '
    'sampled and reverse_kl, or objective.extrapolation=1.',
  )
  require_choice('objective.correction', config.correction, ('none', 'token'))
  require(
    config.correction_cap > 0, f'objective.correction_cap is {config.correction_cap}; it must be positive.'
  )
  require(
    config.correction == 'none' or config.statistics,
    "objective.correction is 'token', which needs the log-probs of the sampled tokens; set "
    'objective.statistics=true.',
  )
  require_choice('objective.mode', config.mode, MODES)
  require(config.chunk_tokens > 0, f'objective.chunk_tokens is {config.chunk_tokens}; it must be positive.')


def _validate_divergence(config: ObjectiveConfig, vocab: int) -> None:
  require(
    config.support not in get_args(Overlap),
    f'objective.support is {config.support}, which rewards alone have; set objective.estimator=reward_topk '
    'and objective.divergence=reverse_kl.',
  )
  require(
    config.reward_weights == 'student_p',
    f'objective.reward_weights is {config.reward_weights}, but there are no rewards; set '
    'objective.estimator=reward_topk, or leave it out.',
  )
  _validate_spec(divergence_spec(config, vocab), vocab)
  for name in implementations(config) or ():
    require_choice('objective.implementation', name, divergence.IMPLEMENTATIONS)
  lacking = divergence.explain(divergence_spec(config, vocab), implementation=implementations(config))
  require(
    any(choice.lacks is None for choice in lacking),
    f'objective.implementation is {config.implementation}, but '
    f'{"; ".join(f"{choice.name} lacks {choice.lacks}" for choice in lacking)}. Add chunked, or use none.',
  )


def _validate_reward(config: ObjectiveConfig, vocab: int) -> None:
  """Of the pairs of a divergence and a gradient, only a sound one goes by this name."""
  require(
    config.divergence == 'reverse_kl',
    f'objective.divergence is {config.divergence}, but the rewards of objective.estimator=reward_topk are of '
    'the reverse KL: their policy gradient is of no other. Set objective.divergence=reverse_kl.',
  )
  require(
    config.support in REWARD_SUPPORTS,
    f'objective.support is {config.support}, but objective.estimator=reward_topk needs one of '
    f'{", ".join(REWARD_SUPPORTS)}. For the sampled token alone or the full vocabulary set '
    'objective.estimator=divergence.',
  )
  require_choice('objective.reward_weights', config.reward_weights, get_args(Share))
  unused = {'tail': 'renormalise', 'mode': 'memory', 'implementation': None}
  unused |= dict.fromkeys(('entry_clip_min', 'entry_clip_max', 'token_clip'))
  for name, default in unused.items():
    require(
      getattr(config, name) == default,
      f'objective.{name} is {getattr(config, name)}, which objective.estimator=reward_topk does not have; '
      'leave it out.',
    )
  # What is asked of k, temperatures and soft-caps is asked of every top-k.
  spec = dataclasses.replace(divergence_spec(config, vocab), support='student_topk')
  _validate_spec(spec, vocab)


def _validate_spec(spec: divergence.DivergenceSpec, vocab: int) -> None:
  try:
    reference.validate(spec, vocab)
  except ValueError as error:
    raise ConfigError(f'objective: {str(error).replace("kind=", "objective.divergence=")}') from error


def validate_teacher(config: TeacherConfig) -> None:
  """Raises `ConfigError` for a teacher that cannot be kept."""
  require_choice('teacher.kind', config.kind, ('frozen', 'ema', 'live', 'external'))
  require(0 <= config.ema_decay < 1, f'teacher.ema_decay is {config.ema_decay}; it must lie in [0, 1).')
  if config.kind != 'external':
    require(
      config.weights.path is None,
      f'teacher.weights.path is {config.weights.path!r}, but teacher.kind is {config.kind!r}, which is '
      "made of the student's own weights; set teacher.kind=external, or teacher.weights.path=none.",
    )
    return
  try:
    specs.validate(config.model)
  except ConfigError as error:
    raise ConfigError(f'teacher.{error}') from error
  weights_room.validate(config.weights, config.model, 'teacher.')


def validate_external(config: TeacherConfig, vocab: int, trained_updates: int) -> None:
  """Raises `ConfigError` for an external teacher without weights, or without rows for the vocabulary.

  Args:
    config: of the teacher.
    vocab: ids that the student may draw.
    trained_updates: of the supervised stage that makes the teacher's weights.
  """
  if config.kind != 'external':
    return
  require(
    config.weights.path is not None or trained_updates > 0,
    "teacher.kind is 'external', but its weights would be random: name a folder in teacher.weights.path, or "
    'train them with teacher_start.updates.',
  )
  require(
    config.model.vocab_size >= vocab,
    f'teacher.model.vocab_size is {config.model.vocab_size}, but the student draws {vocab} ids; a teacher of '
    'another vocabulary cannot score its tokens: take one of the same tokenizer.',
  )


def validate_views(config: ViewsConfig) -> None:
  """Raises `ConfigError` for widths that hold no prompt, or settings that only a conversation has."""
  for field in ('student_tokens', 'teacher_tokens'):
    require(getattr(config, field) > 0, f'views.{field} is {getattr(config, field)}; it must be positive.')
  for field in ('system', 'student_thinking', 'teacher_thinking'):
    value = getattr(config, field)
    require(
      config.chat or value in (None, ''),
      f'views.{field} is {value!r}, but only a conversation has it; set views.chat=true.',
    )
  require(
    0 <= config.solution_fraction <= 1,
    f'views.solution_fraction is {config.solution_fraction}; a share lies in 0..1.',
  )
  require(
    config.analysis_tokens >= 0,
    f'views.analysis_tokens is {config.analysis_tokens}; it must not be negative.',
  )
  require(
    bool(config.analysis) == (config.analysis_tokens > 0),
    f'views.analysis is {config.analysis!r} and views.analysis_tokens {config.analysis_tokens}: an analysis '
    'needs a template and a budget of tokens; set both, or neither.',
  )
