"""The divergence once more: float64 NumPy on logits [N, V], derivatives by central differences."""

import numpy as np

# Compiler options of programs that run once: most of a test's time is theirs.
QUICK = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}


def log_softmax(x):
  x = np.asarray(x, np.float64)
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def shaped(logits, temperature, softcap, valid_vocab):
  logits = np.asarray(logits, np.float64)
  logits = logits if softcap is None else softcap * np.tanh(logits / softcap)
  return logits[..., :valid_vocab] / temperature


def entries(log_p, log_q, spec):
  p, q = np.exp(log_p), np.exp(log_q)
  forward, reverse = p * (log_p - log_q), q * (log_q - log_p)
  if spec.kind == 'both_kl':
    return spec.beta * forward + (1 - spec.beta) * reverse
  if spec.kind != 'jsd':
    return forward if spec.kind == 'forward_kl' else reverse
  log_m = np.log(spec.beta * p + (1 - spec.beta) * q)
  return spec.beta * p * (log_p - log_m) + (1 - spec.beta) * q * (log_q - log_m)


def support_ids(z, u, spec):
  """Sorted ids of one position's support, from shaped logits [V]."""
  best = lambda x: set(np.argsort(-x, kind='stable')[: spec.k])  # noqa: E731
  chosen = dict(
    full=lambda: range(len(z)),
    teacher_topk=lambda: best(u),
    student_topk=lambda: best(z),
    union=lambda: best(u) | best(z),
  )[spec.support]()
  return np.array(sorted(chosen))


def restricted(log_x, ids, spec):
  """Log-probabilities [N, n or n + 1] of a support and, for a bucket, of all the rest."""
  top = log_x[:, ids]
  if spec.tail == 'renormalise' or len(ids) == log_x.shape[1]:
    return log_softmax(top)
  rest = np.delete(log_x, ids, axis=1)
  largest = rest.max(1, keepdims=True)
  return np.concatenate([top, largest + np.log(np.exp(rest - largest).sum(1, keepdims=True))], axis=1)


def loss(z, u, ids, spec):
  """Losses [N] of shaped student logits [N, V] against a teacher's [V], and clipped shares [N]."""
  log_q, log_p = log_softmax(z), np.broadcast_to(log_softmax(u), z.shape)
  if spec.support != 'full':
    log_q, log_p = restricted(log_q, ids, spec), restricted(log_p, ids, spec)
  values = entries(log_p, log_q, spec)
  low = -np.inf if spec.entry_clip_min is None else spec.entry_clip_min
  high = np.inf if spec.entry_clip_max is None else spec.entry_clip_max
  return np.clip(values, low, high).sum(1), ((values < low) | (values > high)).mean(1)


def sampled(z, u, target, spec):
  """Value and gradient [V] of the estimate from one token, as the spec defines them."""
  log_q, log_p = log_softmax(z), log_softmax(u)
  ratio = np.exp(log_p[target] - log_q[target])
  value = dict(forward_kl=ratio * np.log(ratio) - ratio + 1, reverse_kl=-np.log(ratio))
  factor = dict(forward_kl=1 - ratio, reverse_kl=-np.log(ratio))
  slope = np.eye(len(z))[target] - np.exp(log_q)
  mix = dict(both_kl=(spec.beta, 1 - spec.beta), forward_kl=(1, 0), reverse_kl=(0, 1))[spec.kind]
  mixed = lambda x: mix[0] * x['forward_kl'] + mix[1] * x['reverse_kl']  # noqa: E731
  return mixed(value), mixed(factor) * slope


def position(student, teacher, target, spec, step=1e-5):
  """Results of one position, and the gradient [V] of its loss to the student's raw logits."""
  student = np.asarray(student, np.float64)
  shape = lambda x: shaped(x, spec.student_temperature, spec.student_softcap, spec.valid_vocab)  # noqa: E731
  z, u = shape(student), shaped(teacher, spec.teacher_temperature, spec.teacher_softcap, spec.valid_vocab)
  log_q, log_p = log_softmax(z), log_softmax(u)
  q, p = np.exp(log_q), np.exp(log_p)
  gradient = np.zeros(len(student))
  if spec.support == 'sampled':
    ids, changed = np.array([target]), 0.0
    value, slopes = sampled(z, u, target, spec)
    capped = 1.0 if spec.student_softcap is None else 1 - np.tanh(student / spec.student_softcap) ** 2
    gradient[: len(z)] = slopes / spec.student_temperature
    gradient *= capped
  else:
    ids = support_ids(z, u, spec)
    (value,), (changed,) = loss(z[None], u, ids, spec)
    moves = step * np.eye(len(student))[: len(z)]
    ahead, behind = (loss(shape(student + way * moves), u, ids, spec)[0] for way in (1, -1))
    gradient[: len(z)] = (ahead - behind) / (2 * step)
  results = dict(
    loss=value,
    forward_kl=(p * (log_p - log_q)).sum(),
    reverse_kl=(q * (log_q - log_p)).sum(),
    student_entropy=-(q * log_q).sum(),
    teacher_entropy=-(p * log_p).sum(),
    student_logp=log_q[target],
    teacher_logp=log_p[target],
    student_mass=q[ids].sum(),
    teacher_mass=p[ids].sum(),
    clip_fraction=changed,
    agreement=float(np.argmax(z) == np.argmax(u)),
  )
  return results, gradient


def call(arrays, targets, spec, weights):
  """Results [B, T] of a call, and gradients of the weighted sum of losses to the student's two arrays."""
  student, head, teacher, teacher_head = (np.asarray(x, np.float64) for x in arrays)
  logits, own = student @ head.T, teacher @ teacher_head.T
  fields, levels = {}, np.zeros_like(logits)
  for place in np.ndindex(*targets.shape):
    results, gradient = position(logits[place], own[place], targets[place], spec)
    levels[place] = weights[place] * gradient
    for name, value in results.items():
      fields.setdefault(name, np.zeros(targets.shape))[place] = value
  return fields, (levels @ head, np.einsum('btv,btd->vd', levels, student))
