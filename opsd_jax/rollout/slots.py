"""One compiled loop for more requests than rows: a row that has ended takes the next request inside it.

Axis letters: Q questions, n rollouts of each, R = Q·n requests, S slots (rows that are decoded at a time),
P prompt tokens, T token budget, W = P - 1 + T columns of a slot's cache. Slots and requests are split into G
groups, one a shard of the rows: a request is served by a slot of its own shard, so that no prompt travels.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opsd_jax.models import chunked, model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.models.transformer import KV, Context
from opsd_jax.rollout import cache as caches
from opsd_jax.rollout import drawing, sampling
from opsd_jax.rollout.config import DecodeConfig


class Requests(NamedTuple):
  """What is asked for; row r continues prompt r // n."""

  prompt: Context  # of Q questions, read-only
  first: jax.Array  # int32 [Q], the last token of each prompt: the first input of its continuations
  keys: jax.Array  # [R], one random key a request
  budget: jax.Array  # int32 [R], tokens


class Slots(NamedTuple):
  """The rows that are decoded, [G, S / G] of each; an idle one has a request that does not exist."""

  request: jax.Array  # int32, place among its group's requests; R / G where the slot is idle
  token: jax.Array  # int32, the next input
  start: jax.Array  # int32, tokens of the prompt before the first input
  drawn: jax.Array  # int32, tokens so far
  cache: KV  # [L, S, K, W, H]; [L, S, K, T, H] where the prompts are shared and stay where they are


class Written(NamedTuple):
  """What has been drawn for every request."""

  ids: jax.Array  # int32 [R, T]
  raw_logp: jax.Array  # float32 [R, T]
  behaviour_logp: jax.Array  # float32 [R, T]
  length: jax.Array  # int32 [R]
  stopped: jax.Array  # bool [R], ended by an EOS
  ended: jax.Array  # bool [R], no more tokens will come


class State(NamedTuple):
  """What the loop carries from token to token."""

  slots: Slots
  written: Written
  next: jax.Array  # int32 [G], requests of each group that have been taken
  steps: jax.Array  # int32
  computed: jax.Array  # int32, positions that the model read, idle rows among them


class Sampler(NamedTuple):
  """What a token takes beside the state; only the parameters and the law are arrays.

  With `shared` there is a slot for every request, and prompts are contexts that consecutive rows share.
  Else each slot's cache begins with a prompt of its own.
  """

  spec: ModelSpec
  params: model.Params
  law: drawing.Law
  truncation: drawing.Truncation
  eos_ids: tuple[int, ...]
  valid_vocab: int | None
  shared: bool


def start(spec: ModelSpec, requests: Requests, config: DecodeConfig, budget: int, groups: int) -> State:
  """The state before the first token.

  Args:
    spec: the model's shape.
    requests: R of them.
    config: how many are decoded at a time; without slots, prompts stay shared contexts.
    budget: T, the largest budget of a request.
    groups: G.
  """
  total, width = requests.budget.shape[0], budget
  if config.slots is None:
    request = jnp.arange(total, dtype=jnp.int32).reshape(groups, -1) % (total // groups)
    token, before = _inputs(requests, jnp.arange(total))
    request = jnp.where(requests.budget.reshape(groups, -1) > 0, request, total // groups)
  else:
    slots, width = slots_of(config.slots, total, groups), budget + requests.prompt.kv.key.shape[3]
    request = jnp.full((groups, slots // groups), total // groups, jnp.int32)
    token = before = jnp.zeros(slots, jnp.int32)
  zeros = jnp.zeros_like(request)
  cache = caches.empty(spec, request.size, width, config.cache)
  rows = Slots(request, token.reshape(request.shape), before.reshape(request.shape), zeros, cache)
  taken = jnp.full(groups, total // groups if config.slots is None else 0, jnp.int32)
  return State(rows, _nothing(requests.budget, budget), taken, jnp.int32(0), jnp.int32(0))


def slots_of(slots: int, requests: int, groups: int) -> int:
  """As many slots as are asked for or have something to do, made a multiple of the groups."""
  return -(-min(slots, requests) // groups) * groups


def _nothing(budget: jax.Array, width: int) -> Written:
  rows = budget.shape[0]
  zeros = jnp.zeros((rows, width), jnp.float32)
  none = jnp.zeros(rows, bool)
  return Written(
    jnp.zeros((rows, width), jnp.int32), zeros, zeros, jnp.zeros(rows, jnp.int32), none, budget <= 0
  )


def _inputs(requests: Requests, index: jax.Array) -> tuple[jax.Array, jax.Array]:
  """First input and number of tokens before it, of requests [...] by their place among all."""
  question = index // (requests.budget.shape[0] // requests.first.shape[0])
  return requests.first[question], requests.prompt.length[question]


def busy(state: State) -> jax.Array:
  """bool [G, S / G], slots that draw tokens."""
  return state.slots.request < state.written.length.shape[0] // state.next.shape[0]


def waiting(state: State) -> jax.Array:
  """bool [G], groups with requests that nobody has taken."""
  return state.next < state.written.length.shape[0] // state.next.shape[0]


@jax.named_scope('decode')
def go_on(sampler: Sampler, requests: Requests, state: State, until: int | jax.Array, idle: int = 0) -> State:
  """Draws until step `until`, or until no request waits and at most `idle` slots of each group are busy."""

  def unfinished(state: State) -> jax.Array:
    enough = jnp.any(waiting(state)) | jnp.any(jnp.sum(busy(state), axis=1) > idle)
    return enough & (state.steps < until)

  def step(state: State) -> State:
    return _advance(sampler, requests, state if sampler.shared else refill(requests, state))

  return jax.lax.while_loop(unfinished, step, state)


def refill(requests: Requests, state: State) -> State:
  """Gives the waiting requests to idle slots, one of each group at a time."""

  def wanted(state: State) -> jax.Array:
    return jnp.any(jnp.any(~busy(state), axis=1) & waiting(state))

  return jax.lax.while_loop(wanted, functools.partial(_take, requests), state)


def _take(requests: Requests, state: State) -> State:
  """The next request of each group that has one and an idle slot; one without a budget is passed over."""
  slots, groups = state.slots, state.next.shape[0]
  each = requests.budget.shape[0] // groups
  idle = ~busy(state)
  taken = jnp.any(idle, axis=1) & waiting(state)
  index = jnp.arange(groups) * each + jnp.minimum(state.next, each - 1)
  placed = taken & (requests.budget[index] > 0)
  place = jnp.where(placed, jnp.argmax(idle, axis=1), idle.shape[1])  # beyond the last: nothing is written
  token, before = _inputs(requests, index)
  local = index // (requests.budget.shape[0] // requests.first.shape[0]) % (requests.first.shape[0] // groups)

  def put(array, value):
    return jax.vmap(lambda row, at, new: row.at[at].set(new, mode='drop'))(array, place, value)

  rows = Slots(
    put(slots.request, state.next),
    put(slots.token, token),
    put(slots.start, before),
    put(slots.drawn, jnp.zeros_like(token)),
    caches.place(slots.cache, requests.prompt.kv, local, place),
  )
  return state._replace(slots=rows, next=state.next + taken)


def _advance(sampler: Sampler, requests: Requests, state: State) -> State:
  """One token of every busy slot."""
  slots, shape = state.slots, state.slots.request.shape
  active = busy(state)
  flat = functools.partial(jnp.reshape, shape=(-1,))
  start, drawn = (flat(jnp.where(active, x, 0)) for x in (slots.start, slots.drawn))
  shared = sampler.shared
  column = drawn if shared else start + drawn
  chunk = chunked.usual_chunk()
  own = Context(slots.cache, column, start if shared else jnp.zeros_like(start), chunk)
  contexts = (requests.prompt.replace(chunk=chunk), own) if shared else (own,)
  tokens, positions = flat(slots.token)[:, None], (start + drawn)[:, None]
  hidden, kv = model.apply(sampler.spec, sampler.params, tokens, positions, contexts)
  token = drawing.draw(
    hidden[:, 0],
    model.head(sampler.spec, sampler.params),
    sampling.uniforms(_keys(requests, slots.request), drawn),
    sampler.law,
    sampler.truncation,
    softcap=sampler.spec.final_softcap,
    valid_vocab=sampler.valid_vocab,
  )
  token = jax.tree.map(lambda x: x.reshape(shape), token)
  written, ends = _write(sampler.eos_ids, requests, state, token, active)
  rows = Slots(
    jnp.where(ends, written.length.shape[0] // shape[0], slots.request),
    token.id,
    slots.start,
    slots.drawn + 1,
    caches.write(slots.cache, kv, column),
  )
  return State(rows, written, state.next, state.steps + 1, state.computed + active.size)


def _keys(requests: Requests, request: jax.Array) -> jax.Array:
  """[S], of each slot's request; an idle slot has that of another."""
  keys = requests.keys.reshape(request.shape[0], -1)
  return jax.vmap(lambda of, at: of.at[at].get(mode='clip'))(keys, request).reshape(-1)


def _write(
  eos_ids: tuple[int, ...], requests: Requests, state: State, token: drawing.Token, active: jax.Array
) -> tuple[Written, jax.Array]:
  """The tokens in their requests' rows, and which slots [G, S / G] end with them."""
  at, slots = state.slots.request, state.slots
  grouped = functools.partial(_grouped, active.shape[0])
  put = jax.vmap(lambda rows, i, t, new: rows.at[i, t].set(new, mode='drop'))
  mark = jax.vmap(lambda rows, i, new: rows.at[i].set(new, mode='drop'))
  fetch = jax.vmap(lambda rows, i: rows.at[i].get(mode='fill', fill_value=0))
  is_eos = jnp.isin(token.id, jnp.array(eos_ids, jnp.int32)) if eos_ids else jnp.zeros_like(active)
  length = slots.drawn + 1
  ends = active & (is_eos | (length >= fetch(grouped(requests.budget), at)))
  old = jax.tree.map(grouped, state.written)
  new = Written(
    ids=put(old.ids, at, slots.drawn, token.id),
    raw_logp=put(old.raw_logp, at, slots.drawn, token.raw_logp),
    behaviour_logp=put(old.behaviour_logp, at, slots.drawn, token.behaviour_logp),
    length=mark(old.length, at, length),
    stopped=mark(old.stopped, at, is_eos),
    ended=mark(old.ended, at, ends),
  )
  return jax.tree.map(lambda x, like: x.reshape(like.shape), new, state.written), ends


def _grouped(groups: int, x: jax.Array) -> jax.Array:
  return x.reshape(groups, -1, *x.shape[1:])


def shrink(state: State, slots: int) -> State:
  """The busy slots moved together into `slots` of each group, which must be enough for them."""
  order = jnp.argsort(~busy(state), axis=1, stable=True)[:, :slots]
  move = jax.vmap(lambda row, at: row[at])
  rows = Slots(*(move(x, order) for x in state.slots[:4]), cache=caches.gather(state.slots.cache, order))
  return state._replace(slots=rows)


def run(sampler: Sampler, requests: Requests, state: State, compact: bool) -> State:
  """Draws everything. With `compact`, rows that are left when nothing waits are decoded in fewer slots.

  Each halving is a loop of its own in the program. A row's roundings may then depend on how many others
  are left, as the shapes do.
  """
  widths = [state.slots.request.shape[1]]
  while compact and not sampler.shared and halves(widths[-1]):
    widths.append(widths[-1] // 2)
  forever = jnp.iinfo(jnp.int32).max
  for fewer in [*widths[1:], 0]:
    state = go_on(sampler, requests, state, forever, idle=fewer)
    state = shrink(state, fewer) if fewer else state
  return state


def halves(slots: int) -> bool:
  """Whether so many slots of a group can become half as many, and that saves time."""
  return slots % 2 == 0 and slots > _FEWEST


_FEWEST = 4  # slots; below it a smaller matrix product takes no less time
