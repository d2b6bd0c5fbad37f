r"""Verdicts on completions: what `config.rules` says of each completion's final answer.

What needs no algebra is decided here: no answer, the same text, plain numbers, absurd sizes. The rest goes
to math-verify, in processes that can be killed (`pool.py`), each pair once. Any thread may grade. Programs
have no final answer: they are run and judged elsewhere (`programs/rewards.py`).

Both rules of mathematics never call a guarded answer right: `guard.absurd` sizes are `wrong` unless the known
answer has the same text, which under `strict` is right and under `opsd` is left to the worker's limits.
"""

from collections.abc import Sequence

from opsd_jax.grade import answers as reading
from opsd_jax.grade import exact, guard, plain, pool
from opsd_jax.grade.config import GradeConfig
from opsd_jax.records import Graded, Problem, Verdict

_COMPARE = 'opsd_jax.grade.compare:compare'
_SMALL = 9  # digits of the integers that `opsd` compares without math-verify


def grade(completions: Sequence[str], answers: Sequence[str], config: GradeConfig = GradeConfig()) -> Graded:
  """A verdict on each completion, given the row's known answer.

  Raises:
    ConfigError: math-verify is needed and not installed, or programs cannot be run on this machine.
  """
  if config.rules == 'programs':
    from opsd_jax.grade.programs import rewards

    return rewards.grade(completions, answers, config)
  rows = list(zip(completions, answers, strict=True))
  return Graded(_verdicts([(answer, find(completion, config)) for completion, answer in rows], config))


def require_known(problem: Problem, config: GradeConfig) -> None:
  """Raises `ConfigError` where programs are to be judged and the problem has no tests."""
  if config.rules == 'programs':
    from opsd_jax.grade.programs import rewards

    rewards.require_tests(problem)


def require_machine(config: GradeConfig) -> None:
  """Raises `ConfigError` where programs are to be judged and cannot be run on this machine; tries one."""
  if config.rules == 'programs':
    from opsd_jax.grade.programs import rewards

    rewards.require_machine(config.programs)


def find(completion: str, config: GradeConfig = GradeConfig()) -> str | None:
  """The final answer as it stands in the completion, or None where the rules read none."""
  if config.rules == 'text':
    return exact.find(completion, config)
  return {'opsd': reading.opsd, 'strict': reading.strict, 'choice': reading.choice}[config.rules](completion)


def equal(
  first: Sequence[str], second: Sequence[str], config: GradeConfig = GradeConfig()
) -> tuple[bool, ...]:
  """Whether final answers, as `find` gives them, are the same under the rules, pair by pair.

  `first` takes the place of the known answer: math-verify's comparison is not quite symmetric.
  """
  verdicts = _verdicts(list(zip(first, second, strict=True)), config)
  return tuple(verdict == Verdict.CORRECT for verdict in verdicts)


def check_golds(answers: Sequence[str], config: GradeConfig = GradeConfig()) -> tuple[Verdict, ...]:
  r"""A verdict on each known answer, boxed and graded against itself; only `correct` can be trusted.

  `strict` calls identical texts right whatever they hold, so there an answer must also be readable: a
  number, or something that math-verify parses; else completions that say it differently would be wrong.
  """
  if config.rules == 'strict':
    return _check_strict(answers, config)
  if config.rules == 'opsd':
    return _verdicts([(answer, find(f'\\boxed{{{answer}}}', config)) for answer in answers], config)
  return _verdicts([(answer, answer) for answer in answers], config)


def _check_strict(answers: Sequence[str], config: GradeConfig) -> tuple[Verdict, ...]:
  found: list[Verdict | None] = []
  for answer in answers:
    read = find(f'\\boxed{{{answer}}}', config)
    if read is None or not plain.same(answer, read) or guard.absurd(answer):
      found.append(Verdict.GOLD_UNPARSABLE)
    else:
      found.append(None if plain.number(plain.tidy(answer)) is None else Verdict.CORRECT)
  return _with_workers(found, [('readable', answer, answer) for answer in answers], config)


def _verdicts(pairs: Sequence[tuple[str, str | None]], config: GradeConfig) -> tuple[Verdict, ...]:
  """Of pairs of a known answer and a found one."""
  decide = {'text': _text, 'choice': _choice, 'opsd': _opsd, 'strict': _strict}[config.rules]
  decided = [Verdict.UNFORMATTED if found is None else decide(gold, found) for gold, found in pairs]
  return _with_workers(decided, [(config.rules, *pair) for pair in pairs], config)


def _with_workers(
  decided: Sequence[Verdict | None], tasks: Sequence[tuple], config: GradeConfig
) -> tuple[Verdict, ...]:
  """The verdicts, those that are still None from workers; equal tasks are worked once."""
  hard = list(dict.fromkeys(task for verdict, task in zip(decided, tasks, strict=True) if verdict is None))
  if not hard:
    return tuple(decided)
  workers = pool.shared(_COMPARE, config.seconds, config.memory_gib, config.workers)
  known = dict(zip(hard, map(_verdict, workers.run(hard)), strict=True))
  return tuple(verdict or known[task] for verdict, task in zip(decided, tasks, strict=True))


def _verdict(result: object) -> Verdict:
  if result is pool.TIMEOUT:
    return Verdict.TIMEOUT
  return Verdict.ERROR if result is pool.DIED else Verdict(result)


def _of(right: bool) -> Verdict:
  return Verdict.CORRECT if right else Verdict.WRONG


def _text(gold: str, found: str) -> Verdict:
  return _of(exact.same(gold, found))


def _choice(gold: str, found: str) -> Verdict:
  letters = reading.letter(gold), reading.letter(found)
  return Verdict.GOLD_UNPARSABLE if letters[0] is None else _of(letters[0] == letters[1])


def _opsd(gold: str, found: str) -> Verdict | None:
  """Decided here only where math-verify is known to agree: integers as everybody writes them."""
  if _small(gold) and _small(found):
    return _of(gold == found)
  if gold != found and (guard.absurd(found) or guard.absurd(gold)):
    return Verdict.WRONG
  return None


def _small(text: str) -> bool:
  digits = text.removeprefix('-')
  plain_digits = digits.isascii() and digits.isdecimal() and len(digits) <= _SMALL
  return plain_digits and (digits[0] != '0' or text == '0')


def _strict(gold: str, found: str) -> Verdict | None:
  same = plain.same(gold, found)
  if same is None and (guard.absurd(found) or guard.absurd(gold)):
    return Verdict.WRONG
  return None if same is None else _of(same)
