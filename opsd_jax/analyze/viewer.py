"""Rollouts as a person reads them: every token in the colour of its loss."""

import html
import math
from collections.abc import Iterator, Sequence

import numpy as np

from opsd_jax.analyze.runs import Arm, Run
from opsd_jax.records import Shown

_POSITIVE, _NEGATIVE = '213, 94, 0', '0, 114, 178'  # vermillion and blue: apart for every eye


def rollouts_html(run: Run) -> str:
  """The first and the last shown update of each arm, '' where no rollout was written out."""
  scale = _scale(run)
  parts = [_arm_rollouts(arm, scale) for arm in run.trained if arm.rollouts]
  return _key(scale) + ''.join(parts) if parts else ''


def _scale(run: Run) -> float:
  """The loss that gets the full colour: 95th percentile of all sizes that the report shows."""
  sizes = [
    abs(x)
    for arm in run.trained
    for n in _ends(arm)
    for shown in arm.rollouts[n]
    for x in shown.loss
    if math.isfinite(x)
  ]
  return float(np.percentile(sizes, 95)) or 1.0 if sizes else 1.0


def _ends(arm: Arm) -> list[int]:
  updates = list(arm.rollouts)
  return sorted({*updates[:1], *updates[-1:]})


def _key(scale: float) -> str:
  steps = ''.join(
    f'<span style="{_shade(scale * x, scale)}">&nbsp;{scale * x:.3g}&nbsp;</span> '
    for x in (-1, -0.5, 0, 0.5, 1)
  )
  return (
    f'<p class="key">Each token has the colour of its loss, in nats: {steps}<br><span '
    'class="soft">The strongest colour is the 95th percentile of this report; point at a '
    'token for its number.</span></p>'
  )


def _arm_rollouts(arm: Arm, scale: float) -> str:
  parts = [f'<h3>{html.escape(arm.label)}</h3>']
  for number in _ends(arm):
    shown = ''.join(_rollout(one, scale) for one in arm.rollouts[number])
    parts.append(f'<details open><summary>update {number}</summary>{shown}</details>')
  return ''.join(parts)


def _rollout(one: Shown, scale: float) -> str:
  verdict = '<span class="right">✓ right</span>' if one.correct else '<span class="wrong">✗ wrong</span>'
  tokens = ''.join(_tokens(one.tokens, one.loss, scale))
  prompts = ''.join(
    f'<div>{name}<pre>{html.escape(text)}</pre></div>'
    for name, text in (('the student sees', one.student_prompt), ('the teacher sees', one.teacher_prompt))
    if text
  )
  return (
    f'<div class="rollout"><p>{verdict} · expected <code>{html.escape(one.answer)}</code> · '
    f'{len(one.tokens)} tokens</p>'
    f'<details><summary>{html.escape(_brief(one.problem))}</summary>'
    f'<div class="views">{prompts}</div></details>'
    f'<div class="tokens">{tokens}</div></div>\n'
  )


def _brief(text: str, limit: int = 160) -> str:
  text = ' '.join(text.split())
  return text if len(text) <= limit else text[: limit - 1] + '…'


def _tokens(tokens: Sequence[str], losses: Sequence[float], scale: float) -> Iterator[str]:
  for token, loss in zip(tokens, losses, strict=False):  # A file edited by hand still shows.
    text = html.escape(token).replace('\n', '⏎\n') or '∅'
    kind = '' if math.isfinite(loss) else ' class="broken"'
    yield f'<span{kind} style="{_shade(loss, scale)}" title="{loss:.4g} nats">{text}</span>'


def _shade(loss: float, scale: float) -> str:
  """Background of a token: the sign chooses the hue, the size its strength."""
  strength = min(abs(loss) / scale, 1.0) if math.isfinite(loss) else 0.0
  return f'background: rgba({_NEGATIVE if loss < 0 else _POSITIVE}, {0.7 * strength:.2f})'
