r"""Which of a teacher's rollouts teach nothing: cut short, without an answer, or going round in circles.

The rules, and the numbers that are defaults, are those of the off-policy cold start of "Rethinking OPD"
(arXiv 2604.13016, section 5.1 and appendix C.1, and vllm_rollout.py of its code). All of them together are
`truncated=true, lacking=\boxed, line_times=5, window_times=3, block_times=3`. Characters are counted, not
tokens.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable

from opsd_jax.config import require


@dataclasses.dataclass(frozen=True)
class RejectConfig:
  r"""Rules, none of which is asked by default; a rollout is rejected by the first that finds something.

  Attributes:
    truncated: reject a rollout that did not come to its end.
    lacking: reject one that does not hold this text (published: `\boxed`); empty for none.
    line_times: reject one in which a line stands so often; 0 for never (published: 5). Space around a line
      does not count.
    line_chars: lines that are shorter may stand as often as they like.
    window_times: reject one in which the same run of characters begins at so many of the places 0,
      `window_stride`, twice that, ...; 0 for never (published: 3).
    window_chars: length of the run; a text shorter than `window_times` runs is not asked.
    window_stride: characters between places.
    block_times: reject one in which a block stands so often without a gap, wherever it begins; 0 for never
      (published: 3).
    block_chars: length of the block.
    block_above: texts of up to so many characters are not asked about blocks.
  """

  truncated: bool = False
  lacking: str = ''
  line_times: int = 0
  line_chars: int = 20
  window_times: int = 0
  window_chars: int = 100
  window_stride: int = 10
  block_times: int = 0
  block_chars: int = 50
  block_above: int = 5000


def asked(config: RejectConfig) -> list[str]:
  """The reasons for which a rollout may be rejected, in the order in which they are asked about."""
  rules = dict(truncated=config.truncated, lacking=config.lacking, lines=config.line_times)
  rules |= dict(windows=config.window_times, blocks=config.block_times)
  return [name for name, is_set in rules.items() if is_set]


def reason(config: RejectConfig, text: str, stopped: bool) -> str | None:
  """The first of `asked` that speaks against a rollout, or None.

  Args:
    config: the rules.
    text: the rollout's, without its end.
    stopped: whether it came to its end.
  """
  if config.truncated and not stopped:
    return 'truncated'
  if config.lacking not in text:
    return 'lacking'
  rules = (('lines', _lines_repeat), ('windows', _windows_repeat), ('blocks', _blocks_repeat))
  return next((name for name, repeats in rules if repeats(config, text)), None)


def _lines_repeat(config: RejectConfig, text: str) -> bool:
  if not config.line_times:
    return False
  lines = (line.strip() for line in text.split('\n'))
  return _most(line for line in lines if len(line) >= config.line_chars) >= config.line_times


def _windows_repeat(config: RejectConfig, text: str) -> bool:
  size = config.window_chars
  if not config.window_times or len(text) < size * config.window_times:
    return False
  starts = range(0, len(text) - size + 1, config.window_stride)
  return _most(text[i : i + size] for i in starts) >= config.window_times


def _blocks_repeat(config: RejectConfig, text: str) -> bool:
  if not config.block_times or len(text) <= config.block_above:
    return False
  again = config.block_times - 1
  return re.search(rf'(.{{{config.block_chars}}})\1{{{again}}}', text, re.DOTALL) is not None


def _most(texts: Iterable[str]) -> int:
  """How often the most frequent one is there."""
  return max(collections.Counter(texts).values(), default=0)


def validate(config: RejectConfig, name: str) -> None:
  """Raises `ConfigError` for rules, set under `name`, that cannot be asked."""
  usual = RejectConfig()
  for rule in ('line', 'window', 'block'):
    times = getattr(config, f'{rule}_times')
    require(
      times == 0 or times > 1,
      f'{name}.{rule}_times is {times}; set at least 2, or 0 for never: once, every text stands.',
    )
    for field in (f.name for f in dataclasses.fields(config) if f.name.startswith(f'{rule}_')):
      value = getattr(config, field)
      require(
        times > 0 or value == getattr(usual, field),
        f'{name}.{field} is {value}, but {name}.{rule}_times is 0, so that nothing is asked; set it, too.',
      )
  for field in ('line_chars', 'window_chars', 'window_stride', 'block_chars'):
    value = getattr(config, field)
    require(value > 0, f'{name}.{field} is {value}; it must be positive.')
  require(config.block_above >= 0, f'{name}.block_above is {config.block_above}; it must not be negative.')
