"""Rollouts drawn by a server. One process asks for all rows of an update."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import threading
import time
import uuid
from typing import Any

import numpy as np

from opsd_jax.models import model
from opsd_jax.models.lora import LoraConfig
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts, Sampled
from opsd_jax.rollout.config import RolloutConfig
from opsd_jax.rollout.engine import answers, http, probe, push
from opsd_jax.rollout.engine.answers import Row
from opsd_jax.rollout.engine.flavours import FLAVOURS, Question
from opsd_jax.rollout.engine.http import EngineError, Refused

_STARTED_ANEW = 3  # times in an update that the server may be
_BROKEN_OFF_S = 1.0  # before rows that the server broke off are asked again


@dataclasses.dataclass(frozen=True)
class Run:
  """What a client knows of the run.

  Attributes:
    spec: of the model.
    lora: of its adapters.
    base: folder that training began from, or None.
    eos_ids: ids that end a row.
    valid_vocab: ids at and beyond it are no tokens.
    seed: of the run.
  """

  spec: ModelSpec
  lora: LoraConfig
  base: str | None
  eos_ids: tuple[int, ...]
  valid_vocab: int
  seed: int


class _Lost(Exception):
  """The server does not draw with the weights that it was given; the message says how that showed."""


def question_seed(seed: int, number: int, problem_id: int) -> int:
  """Below 2**48: the counted randomness of a question's first row in update `number`; row i has i more."""
  words = np.array([seed, number, problem_id], '<u4').tobytes()
  return int.from_bytes(hashlib.blake2b(words, digest_size=6).digest(), 'little')


class Client:
  """The `source.Rollouts` of a server; remembers which weights it was given last.

  Those that it was started with count as version 0: the weights before the first update.
  """

  def __init__(self, config: RolloutConfig, run: Run):
    self._config, self._engine, self._run = config, config.engine, run
    self._flavour = FLAVOURS[config.engine.flavour]
    self._session = http.connect(config.engine.concurrency)
    self._name = f'opsd-{uuid.uuid4().hex[:8]}'  # the server may know weights of other runs
    self._versions: dict[str, int] = {}  # by the labels that weights were given under
    self._label: str | None = None  # of the last ones
    self._model: str | None = None

  def __call__(self, params: model.Params, prompts: Prompts, number: int) -> Sampled:
    """As `source.Rollouts`. Answers that are there are kept: what is missing is asked again.

    Raises:
      EngineError: the server stayed away until the deadline, or does not answer as it must.
    """
    engine = self._engine
    deadline = time.monotonic() + engine.deadline_s
    if self._model is None:
      found = probe.served(engine, self._session, retries=engine.retries, deadline=deadline)
      self._model = found['id']
    if engine.push != 'none' and self._due(number):
      self._push(params, number, deadline)
    rows: dict[int, list[Row]] = {}
    cause = self._ask_missing(prompts, number, rows, deadline)
    for _ in range(_STARTED_ANEW):
      if cause is None:
        break
      self._push(params, number, deadline)  # it has lost our weights
      cause = self._ask_missing(prompts, number, rows, deadline)
    if cause is not None:
      raise EngineError(
        f'the server at {engine.url} took the weights of update {number} and does not draw with them: '
        f'{cause} Several servers behind one address are not supported.'
      )
    ordered = [row for q in range(len(rows)) for row in rows[q]]
    return Sampled(answers.rollout(ordered, self._config, self._run.eos_ids), None, None)

  def _due(self, number: int) -> bool:
    return self._label is None or number - self._versions[self._label] >= self._engine.push_every

  def _push(self, params: model.Params, number: int, deadline: float) -> None:
    """Gives the server the weights after `number` updates, under a label that it never had before."""
    kind, before = self._engine.push, self._label
    label = f'{self._name}-{len(self._versions)}-{number}'
    folder = os.path.join(os.path.abspath(self._engine.push_folder), label)
    push.save(folder, kind, self._run.spec, self._run.lora, params, self._run.base)
    push.tell(self._flavour, kind, label, folder, before, functools.partial(self._post, deadline=deadline))
    if before:
      push.forget(os.path.join(os.path.dirname(folder), before))
    self._versions[label], self._label = number, label

  def _post(self, path: str, body: Any, deadline: float, stop: threading.Event | None = None) -> Any:
    return http.call(
      self._session,
      self._engine.url.rstrip('/') + path,
      body,
      timeout_s=self._engine.timeout_s,
      retries=self._engine.retries,
      deadline=deadline,
      stop=stop,
    )

  def _ask_missing(
    self, prompts: Prompts, number: int, rows: dict[int, list[Row]], deadline: float
  ) -> str | None:
    """Asks for the rows of every question that has none; why some are missing still, or None."""
    stop, cause = threading.Event(), None
    pool = concurrent.futures.ThreadPoolExecutor(self._engine.concurrency)
    missing = [q for q in range(len(prompts.length)) if q not in rows]
    try:
      asked = {pool.submit(self._ask, self._question(prompts, q, number), deadline, stop): q for q in missing}
      for done in concurrent.futures.as_completed(asked):
        try:
          rows[asked[done]] = done.result()
        except _Lost as lost:
          cause = str(lost)
    finally:  # who fails does not wait for the others
      stop.set()
      pool.shutdown(wait=False, cancel_futures=True)
    return cause

  def _question(self, prompts: Prompts, q: int, number: int) -> Question:
    return Question(
      prompt=np.asarray(prompts.ids[q, : prompts.length[q]]).tolist(),
      rows=self._config.per_question,
      seed=question_seed(self._run.seed, number, int(prompts.problem_id[q])),
      sampling=self._config.sampling,
      eos_ids=self._run.eos_ids,
      model=self._model,
      adapter=self._label if self._engine.push == 'adapter' else None,
    )

  def _ask(self, question: Question, deadline: float, stop: threading.Event) -> list[Row]:
    where = f'{self._engine.url}{self._flavour.path}'
    for _ in range(self._engine.retries + 1):
      try:
        said = self._post(self._flavour.path, self._flavour.ask(question), deadline, stop)
      except Refused as error:
        if question.adapter:  # a server that was started anew does not know it
          raise _Lost(str(error)) from error
        raise
      found = self._flavour.read(said)
      if all(answer.ended in ('stop', 'length') for answer in found):
        break
      stop.wait(_BROKEN_OFF_S)
    else:
      raise EngineError(f'{where}: rows were broken off ({[a.ended for a in found]}), again and again.')
    if fault := answers.fault(question, found, self._run.valid_vocab):
      raise EngineError(f'{where}: {fault}')
    return [Row(answer.ids, answer.logps, self._version(answer.label)) for answer in found]

  def _version(self, label: str | None) -> int:
    """Of the weights that an answer came from: as the server says, else those that it was given last."""
    if self._engine.push == 'none':
      return 0
    if self._engine.push == 'adapter' or label is None:
      label = self._label
    if label not in self._versions:
      raise _Lost(f'it says that weights {label!r} drew the rows, not {self._label!r}.')
    return self._versions[label]
