"""Sweeps: `--sweep=seed=0,1 --sweep=optimizer.learning_rate=1e-4,3e-4` is four runs."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

from opsd_jax.config import require

_OPEN, _CLOSE = '([{', ')]}'


def points(sweeps: Sequence[str]) -> list[tuple[str, ...]]:
  """The settings of every run, as `setting=value`; one run without any where nothing is swept.

  Raises:
    ConfigError: a sweep without a setting or values, or something that is swept twice.
  """
  axes = dict(_axis(sweep, sweeps) for sweep in sweeps)
  require(
    len(axes) == len(sweeps),
    f'--sweep names a setting twice: {" ".join(sweeps)}. Write all of its values into one --sweep.',
  )
  each = [[f'{setting}={value}' for value in values] for setting, values in axes.items()]
  return list(itertools.product(*each))


def _axis(sweep: str, sweeps: Sequence[str]) -> tuple[str, list[str]]:
  setting, equals, text = sweep.partition('=')
  require(
    bool(equals and setting.strip()), f'--sweep={sweep} has no setting before an "="; write --sweep=seed=0,1.'
  )
  values = list(split(text))
  require(bool(values), f'--sweep={sweep} has no values; write some, as --sweep={setting}=0,1.')
  repeated = sorted({value for value in values if values.count(value) > 1})
  require(not repeated, f'--sweep={sweep} has {", ".join(repeated)} more than once; name every value once.')
  return setting.strip(), values


def split(text: str) -> Iterator[str]:
  """The values between commas; commas within brackets, or within quotes around a whole value, do not count.

  Raises:
    ConfigError: a bracket or a quote that is not closed.
  """
  value, depth, quote, quoted = '', 0, '', False
  for letter in f'{text},':
    if letter == ',' and not depth and not quote:
      if quoted or value.strip():
        yield value if quoted else value.strip()
      value, quoted = '', False
    elif quote:
      quote, value = ('', value) if letter == quote else (quote, value + letter)
    elif letter in '\'"' and not value.strip() and not depth:
      quote, quoted, value = letter, True, ''
    else:
      depth += (letter in _OPEN) - (letter in _CLOSE)
      value += letter
  require(not quote and not depth, f'--sweep has a quote or bracket that is not closed: {text}.')


def names(runs: Iterable[tuple[str, ...]]) -> list[str]:
  """A name for each run that can be a folder's, as `seed_0`; alike ones are told apart by a number."""
  found: list[str] = []
  for settings in runs:
    parts = [re.sub(r'[^A-Za-z0-9.+-]+', '_', setting).strip('_.') for setting in settings]
    name = '__'.join(parts) or 'run'
    name = name if len(name) <= 100 else f'{name[:90]}_{len(found)}'
    found.append(f'{name}_{len(found)}' if name in found else name)
  return found
