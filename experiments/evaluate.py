"""Measures a model on benchmarks, as a published system does it, and keeps every sample with its verdict.

  python -m experiments.evaluate --model=FOLDER --data=DATA --benchmarks=aime24,math500 --output=runs/eval
  python -m experiments.evaluate --checkpoint=RUN --step=best --data=DATA --protocol=renio --output=runs/eval
  python -m experiments.evaluate --checkpoint=runs/quickstart --benchmarks=mine=asked.jsonl --max_tokens=40 \\
    --output=runs/eval

FOLDER is a model in Hugging Face's format, RUN the folder of an experiments.train. DATA holds the
benchmarks, or is Hugging Face's cache; a benchmark may be given as name=PATH as well. --protocol says how the
problems are asked, how many samples are drawn and which rules judge them; any flag beside it changes one of
these. The output folder gets settings.json, samples.jsonl of each benchmark, results.json and table.md. The
same command goes on where an interrupted one stopped and draws nothing twice. --rows bounds the memory, and
saves time where lengths differ: a row that has ended takes the next sample. --rules is opsd, strict or run.
--prompt=run asks as a run asks its student, which is also what is done where its tokenizer has no chat
template; --prompt=protocol asks as the protocol has it. --rules=run judges as the run does. Without --dtype a
folder computes in float32 on a CPU, else in bfloat16.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from experiments import entry, options
from experiments.asking import folder as folders_asked
from experiments.asking.sampler import Meter, Sampler
from experiments.sitting import exam as exams
from experiments.sitting import judging, papers, record, reports, subject
from experiments.sitting import sit as sitting
from experiments.sitting.book import Book, mark, mark_again, open_book
from experiments.sitting.exam import Exam
from experiments.sitting.papers import Paper
from experiments.sitting.subject import Subject
from opsd_jax import mesh as meshes
from opsd_jax.config import require
from opsd_jax.evaluate import benchmarks, protocols
from opsd_jax.evaluate.protocols import Protocol
from opsd_jax.grade import config as grade_room
from opsd_jax.grade.config import GradeConfig
from opsd_jax.mesh import MeshConfig
from opsd_jax.rollout.config import DecodeConfig, validate_sampling

_SHARED = (
  *('model', 'checkpoint', 'step', 'base', 'output', 'dtype', 'prompt', 'thinking', 'system', 'temperature'),
  *('top_p', 'top_k', 'min_p', 'max_tokens', 'max_prompt_tokens', 'seed', 'samples', 'batch'),
  *('chat_template', 'eos_tokens', 'control_tokens_in_data', 'benchmarks', 'rules'),
)
for shared in _SHARED:
  flags.declare_key_flag(shared)
_PROTOCOL = flags.DEFINE_string('protocol', 'opsd', f'How to ask: {", ".join(protocols.PROTOCOLS)}.')
_DATA = flags.DEFINE_string('data', None, "A folder of data sets, or Hugging Face's cache.")
_LIMIT = flags.DEFINE_integer('limit', None, 'The first problems of each benchmark alone.', lower_bound=1)
_ROWS = flags.DEFINE_integer(
  'rows', None, 'Samples that are drawn side by side; left out: all of a batch, until the last has ended.', 1
)
_EVERY = flags.DEFINE_integer('every', 32, 'Tokens of a dispatch; what ends is kept after it.', lower_bound=1)
_SECONDS = flags.DEFINE_float('grade_seconds', GradeConfig.seconds, 'Of one grading; then it is a timeout.')
_WORKERS = flags.DEFINE_integer('grade_workers', GradeConfig.workers, 'Processes that grade.', lower_bound=1)


def main() -> int:
  """Asks, judges and reports; 130 where Ctrl-C ended it."""
  require(bool(options.OUTPUT.value), '--output is missing; name a folder for the evaluation.')
  output = os.path.abspath(options.OUTPUT.value)
  exam = _exam()
  for paper in exam.papers:
    print(paper.introduction(), file=sys.stderr)
  try:
    with record.claimed(output, exam.settings) as settings:
      print(_evaluate(exam, output, settings), end='')
  except KeyboardInterrupt:
    print('\nstopped; the same command goes on from here', file=sys.stderr)
    return 130
  except OSError as error:
    error.add_note('Remedy: free space, then run the same command: it goes on from here.')
    raise
  return 0


def _evaluate(exam: Exam, output: str, settings: dict[str, Any]) -> str:
  """Draws and marks what is missing, and writes the reports; returns the table."""
  reports.remove(output)
  count = exam.protocol.samples
  books = [open_book(_samples_of(output, p), [x.id for x in p.problems], count) for p in exam.papers]
  settings = _mark_again(exam, books, output, settings)
  for paper, book in zip(exam.papers, books, strict=True):
    mark(book, lambda found, paper=paper: judging.judge(paper, found, exam.grade))
  if not all(book.complete for book in books):
    _ask(exam, books)
  return reports.write(output, exam.papers, books, exam.grade, settings)


def _samples_of(output: str, paper: Paper) -> str:
  return os.path.join(output, paper.name, 'samples.jsonl')


def _exam() -> Exam:
  """Everything that can be refused is refused here."""
  asked, protocol = _subject(), _protocol()
  whose = exams.whose_prompt(options.PROMPT.value, asked)
  config = exams.grading(options.one(options.RULES), asked, protocol, whose)
  config = dataclasses.replace(config, seconds=_SECONDS.value, workers=_WORKERS.value)
  grade_room.validate(config)
  with folders_asked.flags_named():
    validate_sampling('sampling', protocol.sampling, asked.vocab)
  found = [_paper(name, asked, protocol, whose, config) for name in _names(protocol)]
  papers.require_different(found)
  papers.require_positions(found, protocol.sampling.max_tokens, asked)
  for paper in found:
    judging.require_sandbox(paper, config)
  settings = exams.settings(asked, protocol, whose, found, config, options.BATCH.value, _ROWS.value)
  return Exam(asked, protocol, whose, found, config, settings)


def _subject() -> Subject:
  run, folder, dtype = options.CHECKPOINT.value, options.MODEL.value, options.DTYPE.value
  require(bool(run) != bool(folder), 'give either --model=FOLDER or --checkpoint=RUN.')
  texts = {
    name: flags.FLAGS[name].value for name in ('chat_template', 'eos_tokens', 'control_tokens_in_data')
  }
  texts = {name: tuple(v) if isinstance(v, list) else v for name, v in texts.items() if v}
  if folder:
    return subject.of_folder(folder, texts, dtype)
  return subject.of_run(run, options.STEP.value, options.BASE.value, texts, dtype)


def _protocol() -> Protocol:
  """The protocol with what other flags change of it."""
  protocol = protocols.find(_PROTOCOL.value)
  names = ('temperature', 'top_k', 'top_p', 'min_p', 'max_tokens')
  sampling = dataclasses.replace(protocol.sampling, **_given(names))
  names = ('samples', 'thinking', 'seed', 'max_prompt_tokens')
  return dataclasses.replace(protocol, sampling=sampling, **_given(names))


def _given(names: Sequence[str]) -> dict[str, Any]:
  values = {name: flags.FLAGS[name].value for name in names}
  return {name: value for name, value in values.items() if value is not None}


def _names(protocol: Protocol) -> Sequence[str]:
  names = options.BENCHMARKS.value or protocol.benchmarks
  for name, path in map(benchmarks.split_name, names):
    require(
      re.fullmatch(r'[\w.+-]+', name) is not None,
      f'--benchmarks: {name!r} cannot be the name of a folder; use letters, digits, ".", "+", "-" and "_".',
    )
    require(
      bool(path or _DATA.value),
      f'--data is missing: where is {name}? Name a folder of data sets, or {name}=PATH.',
    )
  return names


def _paper(name: str, asked: Subject, protocol: Protocol, whose: str, config: GradeConfig) -> Paper:
  loaded = papers.limited(benchmarks.load(name, _DATA.value), _LIMIT.value)
  system, thinking = options.SYSTEM.value, options.THINKING.value
  view = exams.view(loaded.benchmark.kind, asked, protocol, whose, system, thinking)
  loaded = papers.with_unscorable(loaded, config)
  return papers.write(loaded, view, asked.tokenizer, asked.spec.vocab_size, protocol.max_prompt_tokens)


def _mark_again(exam: Exam, books: Sequence[Book], output: str, settings: dict[str, Any]) -> dict[str, Any]:
  """Marks what is there anew where that was done otherwise; a kill in between is made good the next time."""
  if all(settings.get(name) == exam.settings[name] for name in record.GRADING):
    return settings
  print('marking what is there anew, by the rules of this command', file=sys.stderr)
  settings = record.replace(output, settings, {name: None for name in record.GRADING})
  for paper, book in zip(exam.papers, books, strict=True):
    mark_again(book, lambda found, paper=paper: judging.judge(paper, found, exam.grade))
  return record.replace(output, settings, {name: exam.settings[name] for name in record.REMARKED})


def _ask(exam: Exam, books: Sequence[Book]) -> None:
  """Loads the model and draws what is missing."""
  asked, protocol = exam.subject, exam.protocol
  meter, mesh = Meter(), meshes.make_mesh(MeshConfig())
  with jax.set_mesh(mesh):
    with meter.timed('load'):
      params = jax.block_until_ready(asked.load(mesh))
    eos, count = asked.tokenizer.eos_ids, protocol.samples
    decode = DecodeConfig(slots=_ROWS.value)
    sampler = Sampler(
      asked.spec, mesh, params, protocol.sampling, eos, asked.vocab, count, protocol.seed, decode
    )
    try:
      how = dict(batch=options.BATCH.value, every=_EVERY.value)
      sitting.sit_all(sampler, asked.tokenizer, exam.papers, books, exam.grade, meter, **how)
    finally:
      print(meter.summary(), file=sys.stderr)


if __name__ == '__main__':
  entry.run(main, __doc__)
