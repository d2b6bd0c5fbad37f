"""An exam that is ready to be sat: who is asked what, by which rules, and what tables say of that."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import study
from experiments.sitting import judging
from experiments.sitting.papers import Paper
from experiments.sitting.subject import Subject
from opsd_jax import config as configs
from opsd_jax.config import require, require_choice
from opsd_jax.distill.config import ViewsConfig
from opsd_jax.evaluate import protocols
from opsd_jax.evaluate.benchmark import Kind
from opsd_jax.evaluate.protocols import Protocol
from opsd_jax.grade.config import GradeConfig


@dataclasses.dataclass(frozen=True)
class Exam:
  """All that is known before the model is loaded.

  Attributes:
    subject: who is asked.
    protocol: how, with what was changed of it.
    whose: the prompts that are asked: `protocol` or `run`.
    papers: what is asked.
    grade: the rules that judge.
    settings: what the numbers depend on.
  """

  subject: Subject
  protocol: Protocol
  whose: str
  papers: Sequence[Paper]
  grade: GradeConfig
  settings: Mapping[str, Any]


def whose_prompt(given: Sequence[str], subject: Subject) -> str:
  """Whether the protocol's prompts are asked, or those of the run.

  Raises:
    ConfigError: the subject cannot be asked so.
  """
  given = given or ['run' if subject.views is not None and not subject.converses else 'protocol']
  named = ','.join(given)
  require(named in ('run', 'protocol'), f'--prompt={named} is neither run nor protocol.')
  is_run = subject.views is not None
  require(named != 'run' or is_run, f'--prompt=run: {subject.where} is no run; name a --checkpoint.')
  require(
    named == 'run' or subject.converses,
    f'{subject.where} has no chat template, which the prompts of a protocol need; name one with '
    f'--chat_template=FILE.jinja{", or add --prompt=run" if is_run else ""}.',
  )
  return named


def grading(rules: str | None, subject: Subject, protocol: Protocol, whose: str) -> GradeConfig:
  """The rules that judge: the protocol's, unless others are named or the run's own prompts are asked.

  Raises:
    ConfigError: there are no such rules, or those of a run are meant and there is none.
  """
  rules = rules or ('run' if whose == 'run' else protocol.rules)
  require_choice('--rules', rules, ('opsd', 'strict', 'run'))
  if rules != 'run':
    return GradeConfig(rules)
  require(subject.grade is not None, f'--rules=run: {subject.where} is no run; name other rules.')
  if subject.grade.rules != 'programs':
    return subject.grade
  return dataclasses.replace(
    subject.grade, rules=protocol.rules
  )  # of mathematics, which such a run has none for


def view(
  kind: Kind, subject: Subject, protocol: Protocol, whose: str, system: str | None, thinking: bool | None
) -> ViewsConfig:
  """How the problems of a kind are asked; `system` and `thinking` are those of flags, None if left out.

  Raises:
    ConfigError: flags that mean turns, where a run asks without any.
  """
  if whose == 'protocol':
    return protocol.views(kind, system)
  changes = {'system': system, 'student_thinking': thinking}
  changes = {name: value for name, value in changes.items() if value is not None}
  require(
    subject.views.chat or not changes,
    f'{subject.where} asks without turns; leave out --system and --thinking.',
  )
  return dataclasses.replace(subject.views, **changes)


def settings(
  subject: Subject,
  protocol: Protocol,
  whose: str,
  papers: Sequence[Paper],
  grade: GradeConfig,
  batch: int,
  rows: int | None,
) -> dict[str, Any]:
  """What the numbers depend on, by the names that tables know, as plain JSON."""
  asked = papers[0].view
  system = asked.system if asked.chat else ''
  told = {
    'model': subject.told,
    'protocol': protocol.name,
    'changed': _changed(protocol, whose, grade, system),
    **dataclasses.asdict(protocol.sampling),
    'thinking': asked.student_thinking,
    'prompt': {'of': whose} | {paper.loaded.benchmark.kind: shown(paper.view.student) for paper in papers},
    'system': system or None,
    'rules': grade.rules,
    'samples': protocol.samples,
    'seed': protocol.seed,
    'versions': study.versions(),
    'machine': study.machine(),
    'source': protocol.source,
    'remarks': protocol.remarks,
    'max_prompt_tokens': protocol.max_prompt_tokens,
    'opening': asked.student_opening if whose == 'run' else '',
    'eos_ids': subject.tokenizer.eos_ids,
    'batch': batch,
    'rows': rows,
    'grading': judging.told(grade),
    'benchmarks': {paper.name: paper.told() for paper in papers},
  }
  return json.loads(json.dumps(told))


def shown(template: str) -> str:
  """A template as a reader of a table should see it: braces that stand for themselves are not doubled."""
  return template.replace('{{', '{').replace('}}', '}')


def _changed(protocol: Protocol, whose: str, grade: GradeConfig, system: str) -> list[str]:
  """In what this departs from the protocol as it was published."""

  def values(one: Protocol, **more: Any) -> dict[str, Any]:
    names = ('samples', 'thinking', 'seed', 'max_prompt_tokens')
    return dataclasses.asdict(one.sampling) | {name: getattr(one, name) for name in names} | more

  published = protocols.find(protocol.name)
  before = values(published, rules=published.rules, prompt='protocol', system='')
  return configs.differences(before, values(protocol, rules=grade.rules, prompt=whose, system=system))
