"""One request to a server, asked again while that may help."""

import email.utils
import json
import os
import random
import threading
import time
from typing import Any

import requests
from requests.adapters import HTTPAdapter

_AGAIN = (408, 429, 500, 502, 503, 504)  # of a server that is busy, starting or broken for a moment
_FIRST_S, _LONGEST_S = 0.5, 60.0  # back-off: doubled after every failure, up to the longest
_LATER = (
  requests.ConnectionError,
  requests.Timeout,
  requests.exceptions.ChunkedEncodingError,
  requests.exceptions.ContentDecodingError,
  ValueError,  # no JSON: an answer that was cut off
)


class EngineError(RuntimeError):
  """The server did not give what was asked of it. The message names url, cause and remedy."""


class Refused(EngineError):
  """The server says that the request itself is wrong: asking the same again would not help."""


def connect(concurrency: int) -> requests.Session:
  """A session that keeps as many connections open; OPENAI_API_KEY is sent along where it is set."""
  session = requests.Session()
  for scheme in ('http://', 'https://'):
    session.mount(scheme, HTTPAdapter(pool_maxsize=concurrency))
  if key := os.environ.get('OPENAI_API_KEY'):
    session.headers['Authorization'] = f'Bearer {key}'
  return session


def call(
  session: requests.Session,
  url: str,
  body: Any = None,
  *,
  method: str = 'POST',
  timeout_s: float,
  retries: int,
  deadline: float,
  stop: threading.Event | None = None,
) -> Any:
  """The server's answer, JSON or None for an empty one.

  Lost connections, late answers and statuses of a busy server are asked for again: after half a second,
  then twice as long each time up to a minute, less up to half of that by chance, so that many askers do
  not come back at once; or when the server says (Retry-After).

  Args:
    session: of `connect`.
    url: whole.
    body: sent as JSON.
    method: of HTTP.
    timeout_s: seconds until the server has to say something.
    retries: times to ask again.
    deadline: `time.monotonic()` after which it is not asked again.
    stop: set by whoever no longer wants the answer.

  Raises:
    Refused: another 4xx status.
    EngineError: it still failed after the last retry or at the deadline.
  """
  stop = stop or threading.Event()
  began, attempt = time.monotonic(), 0
  while True:
    attempt += 1
    left = max(deadline - time.monotonic(), 0.001)
    try:
      response = session.request(method, url, json=body, timeout=min(timeout_s, left))
      if response.ok:
        return _json(response.content)
      cause, asked = _status(response), _asked_to_wait(response)
      if response.status_code not in _AGAIN:
        raise Refused(f'{method} {url}: {cause}')
    except _LATER as error:
      cause, asked = f'{type(error).__name__}: {error}', 0.0
    wait = min(_FIRST_S * 2 ** (attempt - 1), _LONGEST_S) * random.uniform(0.5, 1)
    wait = max(wait, asked)
    if attempt > retries or time.monotonic() + wait > deadline or stop.wait(wait):
      raise EngineError(
        f'{method} {url} failed {attempt} times in {time.monotonic() - began:.0f} s; the last time: {cause}. '
        'Look at the server and its log; a server that needs longer to come back needs a larger '
        'rollout.engine.retries, deadline_s or timeout_s.'
      )


def _json(content: bytes) -> Any:
  """None for an empty answer, or for plain words."""
  return json.loads(content) if content.lstrip()[:1] in (b'{', b'[') else None


def _status(response: requests.Response) -> str:
  return f'status {response.status_code} ({response.reason}): {response.text[:300]!r}'


def _asked_to_wait(response: requests.Response) -> float:
  """Seconds that the server asks for in Retry-After, as a number or a date; 0 where it does not."""
  told = response.headers.get('Retry-After', '')
  if told.isdigit():
    return float(told)
  date = email.utils.parsedate_tz(told)
  return 0.0 if date is None else max(email.utils.mktime_tz(date) - time.time(), 0.0)
