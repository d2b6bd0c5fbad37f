"""A small server with the interfaces of vLLM and SGLang, and with the faults that servers have.

What it draws comes of a function: canned rows, or our own sampler on weights that it reads from the folders
which it is told of, as a real server would.
"""

import contextlib
import http.server
import json
import threading
import time

import jax
import numpy as np

from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import lora, model
from opsd_jax.models.folder import adapters, read
from opsd_jax.records import Prompts
from opsd_jax.rollout import decode
from opsd_jax.rollout.config import SamplingConfig
from opsd_jax.rollout.engine.client import question_seed

MODEL = 'tiny'


class Server:
  """Serves on a port of its own, from `with` on.

  `script` maps the number of a question (as they arrive, repetitions too) to a fault: a status, or one of
  `late`, `drop`, `cut`, `die`, `abort`, `no_ids`, `no_logps`, `prompt`, `beyond`, `no_end`, `long`, `few`.
  """

  def __init__(self, draw, script=None, labels=True, context=4096, lora_routes=True, headers=None):
    self.draw, self.script = draw, script or {}
    self.labels, self.context, self.lora_routes, self.headers = labels, context, lora_routes, headers or {}
    self.adapters, self.folder, self.version = {}, None, 'default'
    self.questions, self.posts, self.dead_until = [], [], 0.0
    self.lock = threading.RLock()

  def __enter__(self):
    handler = type('Handler', (_Handler,), {'owner': self})
    self.listener = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    self.listener.daemon_threads = True
    self.thread = threading.Thread(target=self.listener.serve_forever, kwargs={'poll_interval': 0.02})
    self.thread.start()
    self.url = f'http://127.0.0.1:{self.listener.server_port}'
    return self

  def __exit__(self, *_):
    self.listener.shutdown()
    self.listener.server_close()
    self.thread.join()

  def die(self, seconds):
    """Nobody answers for a while; then it is a new process that was given nothing."""
    self.dead_until = time.monotonic() + seconds
    self.adapters, self.folder, self.version = {}, None, 'default'

  def models(self):
    base = {'id': MODEL, 'max_model_len': self.context, 'parent': None}
    return {'data': [base] + [{'id': name, 'parent': MODEL} for name in self.adapters]}

  def post(self, path, body):
    """(status, answer) of everything that is no question."""
    self.posts.append((path, body))
    if path.endswith('load_lora_adapter') and not self.lora_routes:
      return 404, {'detail': 'Not Found'}
    if path in ('/v1/load_lora_adapter', '/load_lora_adapter'):
      if body['lora_name'] in self.adapters:
        return 400, {'error': {'message': f'{body["lora_name"]} has already been loaded.'}}
      self.adapters[body['lora_name']] = body['lora_path']
    elif path in ('/v1/unload_lora_adapter', '/unload_lora_adapter'):
      if self.adapters.pop(body['lora_name'], None) is None:
        return 404, {'error': {'message': 'no such adapter'}}
    elif path == '/collective_rpc' and body['method'] == 'reload_weights':
      self.folder = body['kwargs']['weights_path']
    elif path == '/update_weight_version' and self.labels:
      self.version = body['new_version']
    elif path == '/update_weights_from_disk':
      self.folder, self.version = body['model_path'], body['weight_version']
      return 200, {'success': True, 'message': ''}
    elif path != '/reset_prefix_cache':
      return 404, {'detail': 'Not Found'}
    return 200, None

  def question(self, path, body):
    """(status, answer, fault) of a question."""
    with self.lock:
      fault = self.script.get(len(self.questions))
      self.questions.append(body)
    if isinstance(fault, int):
      return fault, {'error': {'message': f'scripted {fault}'}}, None
    if fault == 'late':
      time.sleep(0.6)
    if fault == 'die':
      self.die(0.5)
      return 0, None, 'drop'
    vllm = path == '/v1/completions'
    name = body['model'] if vllm else body.get('lora_path')
    if name not in (None, MODEL, *self.adapters):
      return (404 if vllm else 400), {'error': {'message': f'The model `{name}` does not exist.'}}, None
    asked = _asked_vllm(body) if vllm else _asked_sglang(body)
    with self.lock:
      rows = self.draw(self, self.adapters.get(name), *asked)
    rows = [_spoilt(row, fault) for row in rows][: 0 if fault == 'few' else None]
    prompt = asked[0] + [0] if fault == 'prompt' else asked[0]
    shape = self._vllm if vllm else self._sglang
    return 200, shape(rows, prompt, asked[-1], fault), fault if fault in ('drop', 'cut') else None

  def _vllm(self, rows, prompt, ends, fault):
    choices = []
    for i, (ids, logps) in enumerate(rows):
      choice = {'index': i, 'text': '...', 'finish_reason': _ended(ids, ends, fault)}
      choice |= {'logprobs': None if logps is None else {'token_logprobs': logps}}
      choice |= {} if ids is None else {'token_ids': ids, 'prompt_token_ids': prompt}
      if self.labels:
        choice['weight_versions'] = [{'version': self.version, 'start': 0, 'end': len(ids or [])}]
      choices.append(choice)
    return {'choices': choices[::-1]}  # in whatever order

  def _sglang(self, rows, prompt, ends, fault):
    found = []
    for ids, logps in rows:
      meta = {'finish_reason': {'type': _ended(ids, ends, fault)}, 'weight_version': self.version}
      if logps is not None:
        meta['output_token_logprobs'] = [[x, i, None] for x, i in zip(logps, ids or [0] * len(logps))]
      ours = {} if ids is None else {'output_ids': ids, 'prompt_token_ids': prompt}
      found.append({'text': '...', 'meta_info': meta} | ours)
    return found


def _ended(ids, ends, fault):
  if fault == 'abort':
    return 'abort'
  return 'stop' if fault == 'no_end' or (ids and ids[-1] in ends) else 'length'


def _spoilt(row, fault):
  ids, logps = list(row[0]), list(row[1])
  if fault == 'no_ids':
    ids = None
  elif fault == 'no_logps':
    logps = None
  elif fault == 'beyond':
    ids[0] = 10**6
  elif fault == 'no_end':
    ids, logps = ids[:1], logps[:1]
  elif fault == 'long':
    ids, logps = ids * 50, logps * 50
  return ids, logps


def _asked_vllm(body):
  """Prompt, seeds of the rows, sampling, whether log-probs are tempered, ends."""
  k = None if body['top_k'] < 0 else body['top_k']
  sampling = SamplingConfig(body['temperature'], k, body['top_p'], body['min_p'], body['max_tokens'])
  seeds = [body['seed'] + i for i in range(body['n'])]
  return body['prompt'], seeds, sampling, False, tuple(body['stop_token_ids'])


def _asked_sglang(body):
  told = body['sampling_params']
  first, k = told[0], None if told[0]['top_k'] < 0 else told[0]['top_k']
  drawing = first['temperature'], k, first['top_p'], first['min_p'], first['max_new_tokens']
  seeds = [p['sampling_seed'] for p in told]
  assert all(ids == body['input_ids'][0] for ids in body['input_ids']) and len(seeds) == len(
    body['input_ids']
  )
  return body['input_ids'][0], seeds, SamplingConfig(*drawing), True, tuple(first['stop_token_ids'])


class _Handler(http.server.BaseHTTPRequestHandler):
  owner: Server
  protocol_version = 'HTTP/1.1'

  def log_message(self, *_):
    pass

  def do_GET(self):
    found = (200, self.owner.models()) if self.path == '/v1/models' else (404, {})
    self.answer(*found)

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers['Content-Length'])) or 'null')
    if self.path in ('/v1/completions', '/generate') and time.monotonic() >= self.owner.dead_until:
      self.answer(*self.owner.question(self.path, body))
    else:
      with self.owner.lock:
        self.answer(*self.owner.post(self.path, body))

  def answer(self, status, data, fault=None):
    if fault == 'drop' or time.monotonic() < self.owner.dead_until:
      self.close_connection = True
      return
    body = b'' if data is None else json.dumps(data).encode()
    body = body[: len(body) // 2] if fault == 'cut' else body
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked has gone
      self.send_response(status)
      for name, value in self.owner.headers.items():
        self.send_header(name, value)
      self.send_header('Content-Length', str(len(body)))
      self.end_headers()
      self.wfile.write(body)


def canned(server, adapter, prompt, seeds, sampling, tempered, ends):
  """Rows that tell their prompt and seed: as long as the prompt, then an end."""
  del server, adapter, sampling, tempered
  return [([prompt[0], s % 4, ends[0]], [-0.5, -(s % 4) - 1.0, -0.25]) for s in seeds]


class Sampler:
  """Draws with our own sampler, as a run of that seed would in those updates.

  Args:
    spec: of the model.
    params: that the server is started with.
    valid_vocab: ids that may be drawn.
    width: that prompts are padded to.
    seed: of the run.
    updates: of the run.
    problem_ids: of every prompt that may come.
  """

  def __init__(self, spec, params, valid_vocab, width, seed, updates, problem_ids):
    self.spec, self.vocab, self.width, self.loaded = spec, valid_vocab, width, {}
    self.mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    self.base = jax.device_put(jax.tree.map(np.asarray, params), jax.devices()[0])
    self.counters = {
      question_seed(seed, number, int(p)): (seed, number, int(p))
      for number in range(updates)
      for p in problem_ids
    }

  def __call__(self, server, adapter, prompt, seeds, sampling, tempered, ends):
    seed, number, problem = self.counters[seeds[0]]
    assert seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    padded = np.zeros((1, self.width), np.int32)
    padded[0, : len(prompt)] = prompt
    drawn = decode.generate(
      self.spec,
      self.weights(server.folder, adapter),
      Prompts(padded, np.array([len(prompt)], np.int32), np.array([problem], np.uint32)),
      sampling,
      eos_ids=ends,
      per_question=len(seeds),
      seed=seed,
      step=number,
      loss_temperature=sampling.temperature if tempered else 1.0,
      valid_vocab=self.vocab,
    )
    drawn = jax.tree.map(np.asarray, drawn)
    return [
      (drawn.ids[b, :n].tolist(), [float(x) for x in drawn.raw_logp[b, :n]])
      for b, n in enumerate(drawn.length)
    ]

  def weights(self, folder, adapter):
    """Those of the folders, read once."""
    if folder is not None and folder not in self.loaded:
      self.loaded = {folder: read.load(folder, self.spec, self.mesh)}
    base = self.base if folder is None else self.loaded[folder]
    if adapter is None:
      return base
    if adapter not in self.loaded:
      self.loaded[adapter] = adapters.load(adapter, self.spec, self.mesh)
    config, trained = self.loaded[adapter]
    return model.Adapted(base, trained, lora.scale(config))
