"""Overrides, messages, flattening and differences of `opsd_jax.config`."""

import dataclasses
import json
import math
from typing import Literal, Optional

import hypothesis
import hypothesis.strategies as st
import pytest

from opsd_jax import config as lib
from opsd_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Schedule:
  kind: Literal['constant', 'cosine'] = 'constant'
  warmup: int = 0


@dataclasses.dataclass(frozen=True)
class Optimizer:
  learning_rate: float = 1e-3
  schedule: Schedule = Schedule()
  betas: tuple[float, ...] = (0.9, 0.95)

  def __post_init__(self):
    lib.require(self.learning_rate > 0, f'learning_rate is {self.learning_rate}, not positive.')


@dataclasses.dataclass(frozen=True)
class Config:
  name: str = 'tiny'
  steps: int = 10
  tie: bool = True
  top_k: int | None = 20
  stop: Optional[str] = None  # noqa: UP045 (both spellings must work)
  share: int | float = 1
  limit: float | Literal['auto'] = 'auto'
  seeds: tuple[int, ...] = (0, 1)
  tags: tuple[str, ...] = ()
  flags: tuple[bool, ...] = ()
  only: tuple[str, ...] | None = None
  optimizer: Optimizer = Optimizer()


def set_one(assignment: str) -> Config:
  return lib.override(Config(), [assignment])


@pytest.mark.parametrize(
  ('assignment', 'field', 'value'),
  [
    ('name=qwen', 'name', 'qwen'),
    ('name=', 'name', ''),
    ('name=none', 'name', 'none'),
    ('name=a=b', 'name', 'a=b'),
    ('name= padded ', 'name', 'padded'),
    (' name =x', 'name', 'x'),
    ('steps=3', 'steps', 3),
    ('steps=-3', 'steps', -3),
    ('steps=1_000', 'steps', 1000),
    ('tie=false', 'tie', False),
    ('tie=FALSE', 'tie', False),
    ('tie=0', 'tie', False),
    ('tie=true', 'tie', True),
    ('tie=1', 'tie', True),
    ('top_k=5', 'top_k', 5),
    ('top_k=none', 'top_k', None),
    ('top_k=None', 'top_k', None),
    ('top_k=null', 'top_k', None),
    ('top_k=', 'top_k', None),
    ('stop=</s>', 'stop', '</s>'),
    ('stop=none', 'stop', None),
    ('share=2', 'share', 2),
    ('share=0.5', 'share', 0.5),
    ('limit=auto', 'limit', 'auto'),
    ('limit=3', 'limit', 3.0),
    ('seeds=4', 'seeds', (4,)),
    ('seeds=4,5', 'seeds', (4, 5)),
    ('seeds= 4 , 5 ,', 'seeds', (4, 5)),
    ('seeds=(4, 5)', 'seeds', (4, 5)),
    ('seeds=[4, 5]', 'seeds', (4, 5)),
    ('seeds=(4,)', 'seeds', (4,)),
    ('seeds=()', 'seeds', ()),
    ('seeds=', 'seeds', ()),
    ('tags=a,b c', 'tags', ('a', 'b c')),
    ('tags=("a,b", "c")', 'tags', ('a,b', 'c')),
    ('flags=true,0', 'flags', (True, False)),
    ('flags=(True, False)', 'flags', (True, False)),
    ('only=gsm8k', 'only', ('gsm8k',)),
    ('only=none', 'only', None),
  ],
)
def test_value_is_read_as_the_declared_type(assignment, field, value):
  result = getattr(set_one(assignment), field)
  assert result == value
  assert type(result) is type(value)


@pytest.mark.parametrize(
  ('text', 'value'), [('1e-4', 1e-4), ('3', 3.0), ('.5', 0.5), ('1_000.5', 1000.5), ('inf', math.inf)]
)
def test_nested_float(text, value):
  rate = set_one(f'optimizer.learning_rate={text}').optimizer.learning_rate
  assert rate == value and type(rate) is float


def test_three_levels_deep():
  result = lib.override(Config(), ['optimizer.schedule.kind=cosine', 'optimizer.schedule.warmup=7'])
  assert result.optimizer == Optimizer(schedule=Schedule('cosine', 7))


def test_later_assignment_wins_and_the_input_is_unchanged():
  before = Config()
  after = lib.override(before, ['steps=1', 'steps=2'])
  assert (before.steps, after.steps) == (10, 2)
  assert dataclasses.replace(after, steps=10) == before


def test_no_assignments_is_the_same_config():
  assert lib.override(Config(), []) == Config()


@pytest.mark.parametrize(
  ('assignment', 'words'),
  [
    ('steps', ['--set=steps', 'no "="']),
    ('=3', ["Config has no field ''"]),
    ('step=3', ["'step'", 'Config', "Did you mean 'steps'?"]),
    ('optimizer.learning_rte=1', ["'optimizer.learning_rte'", 'Optimizer', "Did you mean 'learning_rate'?"]),
    ('optimizer.schedule.warm=1', ['Schedule', "Did you mean 'warmup'?"]),
    ('optimiser.learning_rate=1', ["Did you mean 'optimizer'?"]),
    ('optimizer.schedule.zzz=1', ['Schedule', 'Valid names: kind, warmup.']),
    ('optimizer..warmup=1', ["has no field ''"]),
    ('steps.more=1', ["'steps.more'", 'deeper than the config']),
    ('top_k.more=1', ['deeper than the config']),
    ('optimizer=adam', ["'optimizer'", 'group of settings', 'learning_rate, schedule, betas']),
    ('optimizer.schedule=none', ['group of settings', 'kind, warmup']),
    ('steps=1.5', ["steps is '1.5'", 'type int']),
    ('steps=1e3', ['type int']),
    ('steps=none', ["steps is 'none'", 'type int']),
    ('steps=', ['type int']),
    ('steps=_', ['type int']),
    ('tie=yes', ["tie is 'yes'", 'type bool']),
    ('tie=2', ['type bool']),
    ('optimizer.learning_rate=fast', ["optimizer.learning_rate is 'fast'", 'type float']),
    ('optimizer.learning_rate=-1', ['learning_rate is -1.0', 'not positive']),
    ('top_k=few', ["top_k is 'few'", 'int or none']),
    ('share=half', ['int or float']),
    ('limit=never', ["limit is 'never'", 'float', "'auto'"]),
    ('optimizer.schedule.kind=cosin', ["is 'cosin'", "'constant'", "'cosine'"]),
    ('optimizer.schedule.kind=Cosine', ["'cosine'"]),
    ('seeds=1,x', ["seeds is '1,x'", 'tuple']),
    ('seeds=(1, 2', ['tuple']),
    ('seeds=(1.5, 2)', ['tuple']),
    ('seeds=none', ['tuple']),
    ('flags=(2,)', ['tuple']),
  ],
)
def test_mistake_is_named(assignment, words):
  with pytest.raises(ConfigError) as error:
    set_one(assignment)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize('assignment', ['seeds=(3)', 'tags=("abc")', 'seeds=({[]: 1},)'])
def test_brackets_without_a_comma_are_no_tuple(assignment):
  with pytest.raises(ConfigError):
    set_one(assignment)


def test_tuple_of_fixed_length():
  assert lib.parse('3,a', tuple[int, str], 'pair') == (3, 'a')
  with pytest.raises(ConfigError):
    lib.parse('1,2,3', tuple[int, int], 'pair')


def test_literal_of_numbers():
  assert lib.parse('2', Literal[1, 2], 'order') == 2


def test_mistake_in_a_later_assignment_is_found():
  with pytest.raises(ConfigError, match='nmae'):
    lib.override(Config(), ['steps=3', 'nmae=x'])


def test_type_that_text_cannot_express_is_refused():
  with pytest.raises(ConfigError, match='dict'):
    lib.parse('{}', dict, 'meta')


@dataclasses.dataclass(frozen=True)
class Optional_:
  inner: Schedule | None = None


def test_absent_group_can_stay_absent_but_not_be_filled_from_text():
  assert lib.override(Optional_(), ['inner=none']) == Optional_()
  with pytest.raises(ConfigError, match='deeper than the config'):
    lib.override(Optional_(), ['inner.warmup=3'])
  with pytest.raises(ConfigError, match='Schedule or none'):
    lib.override(Optional_(), ['inner=3'])


def test_config_error_is_a_value_error():
  assert issubclass(ConfigError, ValueError)


def test_require():
  lib.require(True, 'unused')
  with pytest.raises(ConfigError, match='^why$'):
    lib.require(False, 'why')


def test_require_choice():
  lib.require_choice('teacher.kind', 'ema', ('ema', 'frozen'))
  with pytest.raises(ConfigError, match="teacher.kind is 'emma'.* Did you mean 'ema'?"):
    lib.require_choice('teacher.kind', 'emma', ('ema', 'frozen'))
  with pytest.raises(ConfigError, match='Valid names: ema, frozen.'):
    lib.require_choice('teacher.kind', 'xyz', ('frozen', 'ema'))


def test_nearest_takes_any_iterable():
  assert lib.nearest('studnt', (name for name in ('student', 'teacher'))) == (" Did you mean 'student'?")


def test_flatten_is_in_field_order():
  assert lib.flatten(Optimizer()) == {
    'learning_rate': 1e-3,
    'schedule.kind': 'constant',
    'schedule.warmup': 0,
    'betas': (0.9, 0.95),
  }
  assert list(lib.flatten(Config()))[-4:] == [
    'optimizer.learning_rate',
    'optimizer.schedule.kind',
    'optimizer.schedule.warmup',
    'optimizer.betas',
  ]
  assert lib.flatten(Schedule(), 'a.') == {'a.kind': 'constant', 'a.warmup': 0}


def test_to_dict_is_what_json_reads_back():
  plain = lib.to_dict(Config(seeds=(3, 4)))
  assert plain == json.loads(json.dumps(plain))
  assert plain['seeds'] == [3, 4]
  assert plain['optimizer']['schedule'] == {'kind': 'constant', 'warmup': 0}
  assert plain['stop'] is None and plain['tie'] is True


def test_differences_of_equal_configs_is_empty():
  assert lib.differences(lib.to_dict(Config()), lib.to_dict(Config())) == []


def test_differences_names_the_leaf():
  old = lib.to_dict(Config())
  new = lib.to_dict(
    lib.override(Config(), ['steps=11', 'optimizer.schedule.warmup=5', 'seeds=0', 'top_k=none'])
  )
  assert lib.differences(old, new) == [
    'optimizer.schedule.warmup: 0 -> 5',
    'seeds: [0, 1] -> [0]',
    'steps: 10 -> 11',
    'top_k: 20 -> None',
  ]


def test_differences_shows_absent_settings():
  assert lib.differences({'a': 1, 'b': {'c': 2}}, {'b': {'c': 2, 'd': None}}) == [
    'a: 1 -> (absent)',
    'b.d: (absent) -> None',
  ]


def test_differences_of_a_group_and_a_value():
  assert lib.differences({'a': {'b': 1}}, {'a': None}) == ["a: {'b': 1} -> None"]


FLOATS = st.floats(allow_nan=False)
FINITE = st.floats(allow_nan=False, allow_infinity=False)  # Python writes no literal for infinity
WORDS = st.text(st.characters(exclude_categories=['Cs']))
# A bare string is read as it stands, so what stripping or `none` would change has no spelling.
PLAIN = WORDS.map(str.strip).filter(lambda text: text.lower() not in ('none', 'null', ''))

CONFIGS = st.builds(
  Config,
  name=PLAIN,
  steps=st.integers(),
  tie=st.booleans(),
  top_k=st.none() | st.integers(),
  stop=st.none() | PLAIN,
  share=st.integers() | FLOATS,
  limit=FLOATS | st.just('auto'),
  seeds=st.lists(st.integers()).map(tuple),
  tags=st.lists(WORDS).map(tuple),
  flags=st.lists(st.booleans()).map(tuple),
  only=st.none() | st.lists(WORDS).map(tuple),
  optimizer=st.builds(
    Optimizer,
    learning_rate=st.floats(min_value=0, exclude_min=True),
    betas=st.lists(FINITE).map(tuple),
    schedule=st.builds(Schedule, st.sampled_from(['constant', 'cosine']), st.integers()),
  ),
)


def spelled(value) -> str:
  return value if isinstance(value, str) else repr(value)


@hypothesis.given(CONFIGS)
def test_flatten_then_override_gives_the_config_back(config):
  assignments = [f'{path}={spelled(value)}' for path, value in lib.flatten(config).items()]
  result = lib.override(Config(), assignments)
  assert result == config
  assert lib.differences(lib.to_dict(config), lib.to_dict(result)) == []
  for path, value in lib.flatten(config).items():
    assert type(lib.flatten(result)[path]) is type(value)


@hypothesis.given(CONFIGS, CONFIGS)
def test_differences_is_empty_exactly_for_equal_dicts(old, new):
  old, new = lib.to_dict(old), lib.to_dict(new)
  assert (lib.differences(old, new) == []) == (old == new)


@hypothesis.given(st.text())
def test_any_text_is_read_or_refused_with_a_config_error(text):
  for kind in (int, float, bool, str, int | None, Literal['a', 'b'], int | float):
    try:
      lib.parse(text, kind, 'setting')
    except ConfigError as error:
      assert 'setting' in str(error)
