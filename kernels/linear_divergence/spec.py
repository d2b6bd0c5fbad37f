"""What to compare and what comes out: the contract that every implementation keeps."""

import dataclasses
from typing import Literal, NamedTuple, get_args

import jax

Kind = Literal['forward_kl', 'reverse_kl', 'both_kl', 'jsd']
Support = Literal['full', 'teacher_topk', 'student_topk', 'union', 'sampled']
Tail = Literal['renormalise', 'bucket']
Mode = Literal['memory', 'speed']

KINDS = get_args(Kind)
SUPPORTS = get_args(Support)
TAILS = get_args(Tail)
MODES = get_args(Mode)


@dataclasses.dataclass(frozen=True)
class DivergenceSpec:
  """Divergence between a teacher's and a student's next-token distributions.

  With p = softmax(teacher logits / teacher_temperature), q = softmax(student logits /
  student_temperature), both over the first `valid_vocab` ids:

    forward_kl = KL(p || q);  reverse_kl = KL(q || p);
    both_kl = beta KL(p || q) + (1 - beta) KL(q || p),  0 < beta < 1;
    jsd = beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q,  0 < beta < 1.

  With support `sampled` the loss sees one entry, the target y, and is an estimate of its kind where
  y was drawn from q. With r = p(y) / q(y), held constant in the gradient:

    forward_kl: value r log r - r + 1, gradient (1 - r) grad log q(y) (what k3 gives, directly derived);
    reverse_kl: value -log r, gradient -log r grad log q(y) (OPSD, arXiv 2601.18734, Eq. 9).

  In expectation over y these are the full divergence and its gradient; `both_kl` mixes them. They
  are not the derivatives of the values: that of -log r has mean 0.

  Attributes:
    kind: which divergence.
    beta: weight of the teacher in the JSD mixture, and of KL(p || q) in `both_kl`.
    support: entries compared: all, the teacher's `k` most probable, the student's, the `union` of
      these two (k to 2k entries), or the `sampled` target alone.
    k: size of a top-k support, 0 for the full vocabulary and the sampled token.
    tail: with a top-k support, `renormalise` both distributions on it, or keep true probabilities
      and add one `bucket` that holds the rest of the mass.
    student_temperature: divides the student's logits.
    teacher_temperature: divides the teacher's logits.
    entry_clip_min: lower bound on each entry's contribution before the sum (ReNIO: 0), or None.
    entry_clip_max: upper bound on each entry's contribution before the sum (OPSD: 0.05), or None.
      A clipped entry has no gradient of its own.
    student_softcap: c in c·tanh(logits / c), applied before the temperature, or None.
    teacher_softcap: the same for the teacher.
    valid_vocab: ids at and beyond it are padding of the head and have probability 0; None means all.
  """

  kind: Kind = 'forward_kl'
  beta: float = 0.5
  support: Support = 'full'
  k: int = 0
  tail: Tail = 'renormalise'
  student_temperature: float = 1.0
  teacher_temperature: float = 1.0
  entry_clip_min: float | None = None
  entry_clip_max: float | None = None
  student_softcap: float | None = None
  teacher_softcap: float | None = None
  valid_vocab: int | None = None


class TeacherTopK(NamedTuple):
  """A teacher that is known by its most probable entries alone, such as one that was cached.

  The ids of a position must differ and lie below the valid vocabulary, and the log-probabilities must be
  finite; their order is free. Nothing checks this, for it would need the values: elsewhere a position's
  results mean nothing, and what it adds to the gradients either. Finite log-probabilities and any ids keep
  them finite, so that a position whose loss has no weight may hold anything such as zeros.

  Attributes:
    ids: integers [B, T, k].
    logp: log-probabilities [B, T, k] under the teacher's distribution over the whole vocabulary, its
      temperature and soft-cap applied; any floating type, used in at least float32.
  """

  ids: jax.Array
  logp: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Divergence:
  """Per-token results, each float32 [B, T]. Only `loss` carries a gradient.

  Where no statistics are asked for, all but `loss` and what tells of clipping are None. So are those that
  need what a `TeacherTopK` does not say: `forward_kl`, `reverse_kl`, `teacher_entropy`, `teacher_logp`.

  Attributes:
    loss: the divergence of the spec, after per-entry clipping, summed over entries; in nats.
    forward_kl: KL(p || q) over the full vocabulary, never clipped.
    reverse_kl: KL(q || p) over the full vocabulary, never clipped.
    student_entropy: entropy of q, in nats.
    teacher_entropy: entropy of p, in nats.
    student_logp: log q(target).
    teacher_logp: log p(target).
    student_mass: sum of q on the support (1 for the full vocabulary).
    teacher_mass: sum of p on the support.
    clip_fraction: share of the support's entries (and the bucket) changed by per-entry clipping.
    agreement: 1 where teacher and student have the same most probable token.
    clip_fallback: 1 where an entry clip needed a second pass over the vocabulary, which one pass
      spares most positions; None where the implementation makes no such difference.
  """

  loss: jax.Array
  clip_fraction: jax.Array
  forward_kl: jax.Array | None = None
  reverse_kl: jax.Array | None = None
  student_entropy: jax.Array | None = None
  teacher_entropy: jax.Array | None = None
  student_logp: jax.Array | None = None
  teacher_logp: jax.Array | None = None
  student_mass: jax.Array | None = None
  teacher_mass: jax.Array | None = None
  agreement: jax.Array | None = None
  clip_fallback: jax.Array | None = None
