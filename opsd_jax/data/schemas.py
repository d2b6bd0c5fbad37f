"""What a row of somebody's data calls its fields, and the well-known schemas."""

import dataclasses

from opsd_jax.config import ConfigError, nearest, require

_TEXTS = ('problem', 'solution', 'answer')  # what a view shows of every problem


@dataclasses.dataclass(frozen=True)
class FieldsConfig:
  """The names that a row's fields have.

  A dot reaches into a nested field: `reward_model.ground_truth`, and `prompt.0.content` for the first of
  a list.

  Attributes:
    problem: the question.
    solution: the worked solution; none where the data has no solutions, and the text is then empty.
    answer: the final answer, a text or a number; not read where there is an `answer_marker`.
    id: a name that no other row has; none: `<split>/<row>`, counted from 0.
    answer_marker: the answer is what follows the last such text in the solution field, and the solution
      is what stands before it; GSM8K has `####`. Of such an answer the separators of thousands are
      left out, `1,080` is 1080, because a model that writes 1080 is right. With `\\boxed` the answer is what
      the braces of the last one hold, and the solution is the whole field.
    tests: the tests of a programming problem, which stand in the place of the answer: a text, or a list or
      group of fields, which becomes JSON. `grade.programs.given` says which forms are understood. None: the
      data has answers.
    starter: the beginning of the program, which stands under the question where the tests call a function; a
      row without one, whose question does not name the function either, is an error. None: the data has none,
      and the names of functions are not looked for.
    meta: further text fields for views, which show them under the last part of their name.
    prefix: an instruction that stands before every question and is no part of it; a row without it is an
      error, because a run would ask some questions with an instruction and some without.
    suffix: as `prefix`, after the question. Space around either does not matter.
  """

  problem: str = 'problem'
  solution: str | None = 'solution'
  answer: str = 'answer'
  id: str | None = None
  answer_marker: str | None = None
  tests: str | None = None
  starter: str | None = None
  meta: tuple[str, ...] = ()
  prefix: str | None = None
  suffix: str | None = None

  @staticmethod
  def named(name: str) -> 'FieldsConfig':
    """The fields of a well-known schema.

    Raises:
      ConfigError: there is no such schema.
    """
    if name not in NAMED:
      raise ConfigError(f'fields {name!r} are unknown.{nearest(name, NAMED)}')
    return NAMED[name]

  def columns(self) -> tuple[str, ...]:
    """The top-level fields that are read."""
    answer = self.tests or (None if self.answer_marker else self.answer)
    named = [self.problem, self.solution, answer, self.starter, self.id, *self.meta]
    return tuple(dict.fromkeys(part for n in named if n is not None for part in (n, n.split('.')[0])))


_VERL = FieldsConfig(problem='prompt.0.content', solution=None, answer='reward_model.ground_truth')

# By the data set, or by the framework whose rows they are. `dapo` is DAPO-Math-17k, `dapo_boxed` its form
# with another instruction, of which the files have doubled braces; `deepmath` is DeepMath-103K, and
# `deepmath_verl` its deduplicated form; `openthoughts` are the 30,000 problems of OPSD, `openthoughts_114k`
# the mathematics of OpenThoughts-114k, where not every row has a boxed answer, `openthoughts_114k_code` its
# programs: `ground_truth_solution` is null there, and `deepseek_solution` has the program in a fence.
# In `mbpp` the function's name stands in the tests alone: a view must show `{answer}`. Its
# `test_setup_code` is not read, so that no program passes the tests of 367, 596, 601 and 927: they want names
# that this code or the canonical program defines.
NAMED = {
  'default': FieldsConfig(),
  'dapo': dataclasses.replace(
    _VERL,
    prefix='Solve the following math problem step by step. The last line of your response should be of the '
    'form Answer: $Answer (without quotes) where $Answer is the answer to the problem.',
    suffix='Remember to put your answer on its own line after "Answer:".',
  ),
  'dapo_boxed': dataclasses.replace(
    _VERL, suffix='Please reason step by step, and put your final answer within \\boxed{{}}.'
  ),
  'deepmath': FieldsConfig(problem='question', solution='r1_solution_1', answer='final_answer'),
  'deepmath_verl': dataclasses.replace(_VERL, problem='extra_info.question'),
  'gsm8k': FieldsConfig(problem='question', solution='answer', answer_marker='####'),
  'math': FieldsConfig(),
  'openthoughts': FieldsConfig(answer='Answer', meta=('COT_Reason',)),
  'mbpp': FieldsConfig(problem='text', solution='code', tests='test_list', id='task_id'),
  'openthoughts_114k': FieldsConfig(solution='ground_truth_solution', answer_marker='\\boxed'),
  'openthoughts_114k_code': FieldsConfig(
    solution='deepseek_solution', tests='test_cases', starter='starter_code'
  ),
  'roll': FieldsConfig(problem='prompt', solution=None, answer='ground_truth'),
  'verl': _VERL,
}


def validate_fields(fields: FieldsConfig) -> None:
  """Raises `ConfigError` where the fields do not make a problem."""
  require(bool(fields.problem), 'data.fields.problem is empty; name the field of the question.')
  require(
    bool(fields.answer_marker or fields.answer),
    'data.fields.answer is empty; name the field of the final answer, or set data.fields.answer_marker.',
  )
  require(
    not fields.answer_marker or fields.solution is not None,
    f'data.fields.answer_marker is {fields.answer_marker!r}, but data.fields.solution, where it would '
    'stand, is none; name that field.',
  )
  require(
    not (fields.tests and fields.answer_marker),
    f'data.fields.tests is {fields.tests!r} and data.fields.answer_marker {fields.answer_marker!r}; a '
    'problem has tests or an answer: set one of them to none.',
  )
  require(
    not fields.starter or bool(fields.tests),
    f'data.fields.starter is {fields.starter!r}, but data.fields.tests, which say whether a function is '
    'wanted, is none; name that field, or set data.fields.starter=none.',
  )
  for name in ('prefix', 'suffix'):
    value = getattr(fields, name)
    require(
      value is None or bool(value.strip()),
      f'data.fields.{name} is blank; write the text that stands there, or none.',
    )
  shown = [name.split('.')[-1] for name in fields.meta]
  for name in shown:
    require(
      name and name not in _TEXTS and shown.count(name) == 1,
      f'data.fields.meta would show two texts as {name!r}; the last parts of its names must differ from '
      f'each other and from {", ".join(_TEXTS)}.',
    )
