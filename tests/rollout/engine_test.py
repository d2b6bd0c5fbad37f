"""The client of a server, against a small server of the same interfaces that has every fault in turn."""

import os
import re
import socket
import threading
import time

import jax
import numpy as np
import pytest

from opsd_jax.config import ConfigError
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import lora, model
from opsd_jax.models.folder import adapters
from opsd_jax.models.lora import LoraConfig
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts
from opsd_jax.rollout.config import RolloutConfig, SamplingConfig, validate
from opsd_jax.rollout.engine import client, http, probe
from opsd_jax.rollout.engine.config import EngineConfig, validate_agreement
from opsd_jax.rollout.engine.flavours import FLAVOURS, Question
from opsd_jax.rollout.engine.http import EngineError, Refused
from tests.rollout.server import MODEL, Server, canned

EOS, VALID = 5, 90
SPEC = ModelSpec(
  vocab_size=96, embed_dim=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=16
)
LORA = LoraConfig(rank=2)
PROMPTS = Prompts(
  ids=np.array([[7, 8, 9, 0], [11, 12, 0, 0], [13, 0, 0, 0]], np.int32),
  length=np.array([3, 2, 1], np.int32),
  problem_id=np.array([1, 2, 2**32 - 1], np.uint32),
)
BOTH = pytest.mark.parametrize('flavour', ['vllm', 'sglang'])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  """Back-off in hundredths of its seconds."""
  monkeypatch.setattr(http, '_FIRST_S', 0.005)
  monkeypatch.setattr(client, '_BROKEN_OFF_S', 0.005)


def config(url, per_question=2, sampling=SamplingConfig(max_tokens=4), **engine):
  return RolloutConfig(
    questions=3,
    per_question=per_question,
    sampling=sampling,
    engine=EngineConfig(url, **({'retries': 4, 'deadline_s': 20.0} | engine)),
  )


def ask(server, number=3, params=None, **engine):
  run = client.Run(SPEC, LORA, None, (EOS,), VALID, seed=11)
  return client.Client(config(server.url, **engine), run)(params, PROMPTS, number).rollout


def seeds(number, seed=11):
  return [client.question_seed(seed, number, int(p)) for p in PROMPTS.problem_id]


# What comes back.


@BOTH
def test_rows_stand_at_their_question(flavour):
  with Server(canned) as server:
    found = ask(server, flavour=flavour)
  assert found.ids[:, 0].tolist() == [7, 7, 11, 11, 13, 13]
  expected = [(s + i) % 4 for s in seeds(3) for i in range(2)]
  assert found.ids[:, 1].tolist() == expected and found.ids[:, 2:].tolist() == [[EOS, 0]] * 6
  np.testing.assert_allclose(found.raw_logp[:, 1], [-x - 1 for x in expected])
  np.testing.assert_allclose(found.raw_logp[:, [0, 2, 3]], [[-0.5, -0.25, 0]] * 6)
  assert (
    found.length.tolist() == [3] * 6 and found.stopped.all() and found.rollout_index.tolist() == [0, 1] * 3
  )
  assert (
    found.policy_version.tolist() == [0] * 6
  )  # it was given no weights: its own are those before training


@BOTH
def test_a_row_without_an_end_is_not_stopped(flavour):
  def cut(server, adapter, prompt, seeds, sampling, tempered, ends):
    return [([1] * sampling.max_tokens, [-1.0] * sampling.max_tokens) for _ in seeds]

  with Server(cut) as server:
    found = ask(server, flavour=flavour)
  assert not found.stopped.any() and found.length.tolist() == [4] * 6


def test_seeds_are_counted():
  """Different for every run, update and question, also in their neighbours, and the same every time."""
  near = [client.question_seed(s, n, p) for s in range(4) for n in range(20) for p in range(50)]
  assert len({x + i for x in near for i in range(4)}) == 4 * len(near) and max(near) < 2**48
  assert client.question_seed(1, 2, 3) == client.question_seed(1, 2, 3)
  assert len({client.question_seed(*x) for x in ((1, 2, 3), (2, 1, 3), (3, 2, 1), (1, 3, 2))}) == 4


def question(**sampling):
  return Question([1, 2], 3, 100, SamplingConfig(**sampling), (5, 6), MODEL, None)


def test_what_vllm_is_asked():
  body = FLAVOURS['vllm'].ask(question(temperature=0.7, top_k=20, top_p=0.9, min_p=0.1, max_tokens=8))
  assert body == {
    'model': MODEL,
    'prompt': [1, 2],
    'n': 3,
    'seed': 100,
    'max_tokens': 8,
    'stop_token_ids': [5, 6],
    'ignore_eos': True,
    'logprobs': 0,
    'return_token_ids': True,
    'return_weight_versions': True,
    'temperature': 0.7,
    'top_k': 20,
    'top_p': 0.9,
    'min_p': 0.1,
    'repetition_penalty': 1.0,
    'presence_penalty': 0.0,
    'frequency_penalty': 0.0,
    'skip_special_tokens': False,
  }
  assert FLAVOURS['vllm'].ask(question()._replace(adapter='a'))['model'] == 'a'


def test_what_sglang_is_asked():
  body = FLAVOURS['sglang'].ask(question(max_tokens=8)._replace(adapter='a'))
  assert body['input_ids'] == [[1, 2]] * 3 and body['lora_path'] == 'a' and body['return_logprob'] is True
  assert [p['sampling_seed'] for p in body['sampling_params']] == [100, 101, 102]
  assert body['sampling_params'][0]['max_new_tokens'] == 8 and body['sampling_params'][0]['top_k'] == -1
  assert body['sampling_params'][2]['stop_token_ids'] == [5, 6]
  assert 'lora_path' not in FLAVOURS['sglang'].ask(question())


@pytest.mark.parametrize(
  ('kind', 'sampling', 'known'),
  [
    ('raw', dict(), True),
    ('raw', dict(temperature=0.5), False),
    ('raw', dict(top_k=3), False),
    ('tempered', dict(temperature=0.5), True),
    ('tempered', dict(temperature=0.5, top_p=0.9), False),
    ('processed', dict(temperature=0.5, min_p=0.1), True),
  ],
)
def test_behaviour_is_told_or_not_a_number(kind, sampling, known):
  sampling = SamplingConfig(max_tokens=4, **sampling)
  with Server(canned) as server:
    run = client.Run(SPEC, LORA, None, (EOS,), VALID, 0)
    found = client.Client(config(server.url, 1, sampling, logprobs=kind), run)(None, PROMPTS, 0).rollout
  assert (found.behaviour_logp[:, 3] == 0).all()
  if known:
    np.testing.assert_array_equal(found.behaviour_logp, found.raw_logp)
  else:
    assert np.isnan(found.behaviour_logp[:, :3]).all() and np.isfinite(found.raw_logp).all()


def test_greedy_rows_have_a_certain_behaviour():
  with Server(canned) as server:
    run = client.Run(SPEC, LORA, None, (EOS,), VALID, 0)
    settings = config(server.url, 1, SamplingConfig(temperature=0, max_tokens=4))
    found = client.Client(settings, run)(None, PROMPTS, 0).rollout
  assert (found.behaviour_logp == 0).all() and (found.raw_logp[:, :3] < 0).all()


# A server that fails for a while.


@BOTH
@pytest.mark.parametrize('fault', [408, 429, 500, 502, 503, 504, 'drop', 'cut', 'abort'])
def test_a_passing_fault_is_asked_again(flavour, fault):
  with Server(canned, {0: fault, 2: fault, 3: fault}) as server:
    found = ask(server, flavour=flavour, concurrency=1)
    assert len(server.questions) == 3 + 3
  with Server(canned) as server:
    whole = ask(server, flavour=flavour)
  jax.tree.map(np.testing.assert_array_equal, found, whole)


@BOTH
def test_a_late_answer_is_asked_for_again(flavour):
  with Server(canned, {0: 'late'}) as server:
    began = time.monotonic()
    ask(server, flavour=flavour, timeout_s=0.2, concurrency=1)
    assert len(server.questions) == 4 and time.monotonic() - began < 5


@BOTH
def test_what_is_answered_is_kept(flavour):
  """Every question is asked once more than it failed, and no other again."""
  with Server(canned, {1: 503, 2: 'drop', 4: 500}) as server:
    ask(server, flavour=flavour, concurrency=1)
    asked = [q['prompt'] if flavour == 'vllm' else q['input_ids'][0] for q in server.questions]
  counts = [asked.count(p) for p in ([7, 8, 9], [11, 12], [13])]
  assert sum(counts) == 6 and counts[0] == 1


def test_the_waits_double_and_are_less_by_chance(monkeypatch):
  monkeypatch.setattr(http, '_FIRST_S', 0.5)
  waits = []

  class Stop(threading.Event):
    def wait(self, seconds):
      waits.append(seconds)
      return False

  with Server(canned, dict.fromkeys(range(11), 500)) as server:
    said = call(server, retries=20, deadline=time.monotonic() + 1000, stop=Stop())
  assert said is not None and len(waits) == 11
  for i, wait in enumerate(waits):
    longest = min(0.5 * 2**i, 60)
    assert longest / 2 <= wait <= longest
  assert len({w / min(0.5 * 2**i, 60) for i, w in enumerate(waits)}) > 5  # askers do not come back at once


def call(server, retries=3, deadline=None, stop=None, path='/v1/completions'):
  body = FLAVOURS['vllm'].ask(question(max_tokens=4))
  deadline = time.monotonic() + 20 if deadline is None else deadline
  url = server if isinstance(server, str) else server.url
  return http.call(
    http.connect(1), url + path, body, timeout_s=5, retries=retries, deadline=deadline, stop=stop
  )


@pytest.mark.parametrize('told', ['7', 'date'])
def test_the_server_may_say_how_long_to_wait(told):
  waits = []

  class Stop(threading.Event):
    def wait(self, seconds):
      waits.append(seconds)
      return False

  date = time.strftime('%a, %d %b %Y %H:%M:%S GMT', time.gmtime(time.time() + 8))
  with Server(canned, {0: 429}, headers={'Retry-After': date if told == 'date' else told}) as server:
    call(server, stop=Stop())
  assert len(waits) == 1 and 5 < waits[0] < 9


def test_the_error_names_everything():
  with Server(canned, dict.fromkeys(range(99), 503)) as server:
    with pytest.raises(EngineError) as caught:
      ask(server, retries=2, concurrency=1)
  message = str(caught.value)
  for part in (
    f'{server.url}/v1/completions',
    '3 times',
    'status 503',
    'scripted 503',
    'rollout.engine.retries',
  ):
    assert part in message, message


def test_the_deadline_ends_it():
  with Server(canned, dict.fromkeys(range(10**4), 500)) as server:
    began = time.monotonic()
    with pytest.raises(EngineError, match='failed'):
      ask(server, retries=10**6, deadline_s=0.5)
    assert time.monotonic() - began < 4


def test_a_wrong_request_is_not_asked_again():
  with Server(canned, {0: 400}) as server:
    with pytest.raises(Refused, match='status 400'):
      call(server)
    assert len(server.questions) == 1
    with pytest.raises(EngineError, match='status 422'):
      server.script = dict.fromkeys(range(9), 422)
      ask(server, concurrency=1)


def test_who_fails_does_not_wait_for_the_others():
  """The first question is refused at once; the others would take more than a minute of retries."""
  with Server(canned, {0: 401} | dict.fromkeys(range(1, 999), 503)) as server:
    began = time.monotonic()
    with pytest.raises(EngineError, match='status 401'):
      ask(server, retries=10**6, deadline_s=60.0)
    assert time.monotonic() - began < 10


# A server that answers what is no rollout.


@BOTH
@pytest.mark.parametrize(
  ('fault', 'message'),
  [
    ('no_ids', 'no token ids.*return_token_ids'),
    ('no_logps', '3 tokens and 0 log-probs.*Start the server'),
    ('prompt', 'another prompt than it was sent: 4 ids instead of 3, different from position 3'),
    ('beyond', r'ids \[1000000\], but the tokenizer has 90'),
    ('no_end', r'ended by token 7, which is none of.*\[5\]'),
    ('long', 'goes on after the end of sequence at its position 2'),
    ('few', '2 continuations were asked for and 0 came'),
  ],
)
def test_other_tokens_are_refused(flavour, fault, message):
  with Server(canned, {0: fault}) as server:
    with pytest.raises(EngineError, match=message):
      ask(server, flavour=flavour, concurrency=1)


def test_more_tokens_than_asked_for_are_refused():
  def long(server, adapter, prompt, seeds, sampling, tempered, ends):
    return [([1] * 9, [-1.0] * 9) for _ in seeds]

  with Server(long) as server, pytest.raises(EngineError, match='9 tokens, more than the 4'):
    ask(server)


@pytest.mark.parametrize('value', [None, float('nan'), float('-inf')])
def test_a_missing_log_prob_is_refused(value):
  def holes(server, adapter, prompt, seeds, sampling, tempered, ends):
    return [([1, EOS], [value, -1.0]) for _ in seeds]

  with Server(holes) as server, pytest.raises(EngineError, match='2 tokens and 1 log-probs'):
    ask(server)


def test_rows_that_are_always_broken_off():
  with Server(canned, dict.fromkeys(range(99), 'abort')) as server:
    with pytest.raises(EngineError, match='broken off.*abort.*again and again'):
      ask(server, concurrency=1)
    assert len(server.questions) == 5


# Weights on their way.


@pytest.fixture(scope='module')
def params():
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  rng = np.random.default_rng(0)

  def draw(leaf):
    return jax.device_put(rng.normal(size=leaf.shape).astype(leaf.dtype), leaf.sharding)

  shapes = model.abstract_params(SPEC, mesh), lora.abstract(LORA, SPEC, mesh)
  return model.Adapted(*jax.tree.map(draw, shapes), lora.scale(LORA))


def pushing(server, folder, kind='adapter', **more):
  run = client.Run(SPEC, LORA, None, (EOS,), VALID, seed=11)
  ask = client.Client(config(server.url, push=kind, push_folder=str(folder), **more), run)
  return lambda params, prompts, number: ask(params, prompts, number).rollout


@BOTH
def test_adapters_are_pushed_and_asked_for(flavour, params, tmp_path):
  seen = []

  def draw(server, adapter, *rest):
    seen.append(adapter)
    found = adapters.load(adapter, SPEC, make_mesh(MeshConfig(), jax.devices()[:1]))
    jax.tree.map(np.testing.assert_array_equal, found[1], params.lora)
    return canned(server, adapter, *rest)

  with Server(draw) as server:
    rollouts = pushing(server, tmp_path, flavour=flavour)
    first, second = rollouts(params, PROMPTS, 4), rollouts(params, PROMPTS, 5)
    assert len(server.adapters) == 1  # those of the update before are unloaded
    assert list(server.adapters.values()) == [str(x) for x in tmp_path.iterdir()]  # and removed
  assert first.policy_version.tolist() == [4] * 6 and second.policy_version.tolist() == [5] * 6
  assert len(set(seen)) == 2 and len(seen) == 6


@BOTH
def test_weights_are_pushed_whole(flavour, params, tmp_path):
  with Server(canned) as server:
    rollouts = pushing(server, tmp_path, 'weights', flavour=flavour)
    assert rollouts(params, PROMPTS, 0).policy_version.tolist() == [0] * 6
    assert rollouts(params, PROMPTS, 1).policy_version.tolist() == [1] * 6
    files = os.listdir(server.folder)
    assert 'model.safetensors' in files and 'config.json' in files and len(os.listdir(tmp_path)) == 1
    if flavour == 'vllm':  # prefixes that the old weights read must not be used
      assert [path for path, _ in server.posts].count('/reset_prefix_cache') == 2


def test_a_server_without_labels_is_believed(params, tmp_path):
  with Server(canned, labels=False) as server:
    assert pushing(server, tmp_path, 'weights')(params, PROMPTS, 2).policy_version.tolist() == [2] * 6


def test_weights_that_are_pushed_now_and_then_grow_stale(params, tmp_path):
  with Server(canned) as server:
    rollouts = pushing(server, tmp_path, push_every=3)
    versions = [int(rollouts(params, PROMPTS, n).policy_version[0]) for n in range(7)]
  assert versions == [0, 0, 0, 3, 3, 3, 6]


@BOTH
@pytest.mark.parametrize('kind', ['adapter', 'weights'])
def test_a_server_that_was_started_anew_gets_its_weights_again(flavour, kind, params, tmp_path):
  """It dies at the fifth question, in the second update, and comes back without what it was given."""
  with Server(canned, {4: 'die'}) as server:
    rollouts = pushing(server, tmp_path, kind, flavour=flavour, retries=30, concurrency=1)
    rollouts(params, PROMPTS, 0)
    found = rollouts(params, PROMPTS, 1)
    asked = [q['prompt'] if flavour == 'vllm' else q['input_ids'][0] for q in server.questions[3:]]
  assert found.policy_version.tolist() == [1] * 6
  assert asked.count([7, 8, 9]) == 1  # it was answered before
  with Server(canned) as server:
    whole = pushing(server, tmp_path / 'whole', kind, flavour=flavour)(params, PROMPTS, 1)
  np.testing.assert_array_equal(found.ids, whole.ids)


def test_a_server_that_draws_with_other_weights_all_the_same(params, tmp_path):
  class Stubborn(Server):
    def question(self, *rest):
      self.version = 'default'
      return super().question(*rest)

  with Stubborn(canned) as server, pytest.raises(EngineError, match="does not draw with them.*'default'"):
    pushing(server, tmp_path, 'weights')(params, PROMPTS, 0)


def test_a_server_that_takes_no_adapters(params, tmp_path):
  with Server(canned, lora_routes=False) as server:
    with pytest.raises(EngineError, match='VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.*push=none') as caught:
      pushing(server, tmp_path)(params, PROMPTS, 0)
  assert 'status 404' in str(caught.value)


def test_a_push_whose_answer_came_too_late_is_no_error(params, tmp_path):
  """The server loaded the adapter, but the answer was lost; asked again, it says that it has it."""

  class Forgetful(Server):
    def post(self, path, body):
      found = super().post(path, body)
      return (503, None) if path == '/v1/load_lora_adapter' and len(self.posts) == 1 else found

  with Forgetful(canned) as server:
    assert pushing(server, tmp_path)(params, PROMPTS, 0).policy_version.tolist() == [0] * 6
    assert [path for path, _ in server.posts] == ['/v1/load_lora_adapter'] * 2


# Before anything expensive.


def test_the_server_is_looked_for():
  with Server(canned) as server:
    text = probe.check(config(server.url, push='adapter', push_folder='/shared'), 3)
  for part in ('vllm', server.url, 'model tiny', 'adapter by /shared every 1 updates', 'raw log-probs'):
    assert part in text
  assert probe.check(RolloutConfig(), 3) == 'our own sampler'


def test_nobody_there():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    url = f'http://127.0.0.1:{free.getsockname()[1]}'
  with pytest.raises(ConfigError, match=f'{re.escape(url)}.*no server answers.*rollout.engine.url=none'):
    probe.check(config(url, retries=50), 3)


def test_another_model_or_a_short_context():
  with Server(canned, context=6) as server:
    with pytest.raises(ConfigError, match="rollout.engine.model is 'tini'.*Did you mean 'tiny'"):
      probe.check(config(server.url, model='tini'), 2)
    with pytest.raises(ConfigError, match='takes 6 tokens, but.*is 7'):
      probe.check(config(server.url), 3)
    assert 'tiny' in probe.check(config(server.url), 2)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(url='localhost:8000'), 'rollout.engine.url.*http://HOST:PORT'),
    (dict(url='http://a:1/v1'), "leave out '/v1'"),
    (dict(push='adapter'), 'push_folder is not set'),
    (dict(push='lora'), "rollout.engine.push is 'lora'"),
    (dict(flavour='tgi'), "rollout.engine.flavour is 'tgi'"),
    (dict(logprobs='all'), "rollout.engine.logprobs is 'all'"),
    (dict(concurrency=0), 'rollout.engine.concurrency is 0'),
    (dict(timeout_s=-1.0), 'rollout.engine.timeout_s is -1.0'),
    (dict(deadline_s=0.0), 'rollout.engine.deadline_s is 0.0'),
    (dict(push_every=0), 'rollout.engine.push_every is 0'),
    (dict(retries=-1), 'rollout.engine.retries is -1'),
  ],
)
def test_bad_settings(changes, message):
  engine = EngineConfig(**({'url': 'http://a:1'} | changes))
  with pytest.raises(ConfigError, match=message):
    validate(RolloutConfig(engine=engine), 100)


@pytest.mark.parametrize(
  ('engine', 'temperature', 'truncated', 'loss', 'works'),
  [
    (dict(), 1.0, False, 1.0, True),
    (dict(), 0.6, True, 1.0, True),  # raw log-probs are at 1 whatever is drawn
    (dict(), 1.1, False, 1.1, False),
    (dict(flavour='sglang'), 1.1, True, 1.1, True),
    (dict(flavour='sglang'), 1.1, False, 1.0, False),
    (dict(flavour='sglang'), 0.0, False, 1.0, True),
    (dict(flavour='sglang', logprobs='raw'), 1.1, True, 1.0, True),
    (dict(logprobs='processed'), 1.1, False, 1.1, True),
    (dict(logprobs='processed'), 1.1, True, 1.1, False),
  ],
)
def test_log_probs_that_cannot_be_compared(engine, temperature, truncated, loss, works):
  engine = EngineConfig('http://a:1', **engine)
  settings = dict(loss_temperature=loss, lora_rank=0, cold_start_updates=0)
  if works:
    validate_agreement(engine, temperature, truncated, **settings)
  else:
    with pytest.raises(ConfigError, match='rollout.engine.logprobs.*student_temperature'):
      validate_agreement(engine, temperature, truncated, **settings)


@pytest.mark.parametrize(
  ('rank', 'cold', 'message'), [(0, 0, 'lora.rank is 0'), (4, 9, '9 updates of the cold')]
)
def test_adapters_that_would_be_of_no_use(rank, cold, message):
  engine = EngineConfig('http://a:1', push='adapter', push_folder='/shared')
  with pytest.raises(ConfigError, match=message):
    validate_agreement(engine, 1.0, False, loss_temperature=1.0, lora_rank=rank, cold_start_updates=cold)
