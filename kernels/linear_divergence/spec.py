"""What to compare and what comes out: the contract that every implementation keeps."""

import dataclasses
from typing import Literal

import jax

Kind = Literal['forward_kl', 'reverse_kl', 'jsd']
Support = Literal['full', 'teacher_topk', 'student_topk']
Tail = Literal['renormalise', 'bucket']


@dataclasses.dataclass(frozen=True)
class DivergenceSpec:
  """Divergence between a teacher's and a student's next-token distributions.

  With p = softmax(teacher logits / teacher_temperature), q = softmax(student logits /
  student_temperature), both over the first `valid_vocab` ids:

    forward_kl = KL(p || q);  reverse_kl = KL(q || p);
    jsd = beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q,  0 < beta < 1.

  Attributes:
    kind: which divergence.
    beta: weight of the teacher in the JSD mixture; unused by the KLs.
    support: entries compared: all, the teacher's `k` most probable, or the student's.
    k: size of a top-k support, 0 for the full vocabulary.
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Divergence:
  """Per-token results, each float32 [B, T]. Only `loss` carries a gradient.

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
  """

  loss: jax.Array
  forward_kl: jax.Array
  reverse_kl: jax.Array
  student_entropy: jax.Array
  teacher_entropy: jax.Array
  student_logp: jax.Array
  teacher_logp: jax.Array
  student_mass: jax.Array
  teacher_mass: jax.Array
  clip_fraction: jax.Array
  agreement: jax.Array
