"""Training curves of all arms on one page."""

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from opsd_jax.analyze.runs import Arm, Run, label

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with colour-blindness can tell apart.
_OPSD, _COLD = '#0072B2', '#555555'
_CONTROLS = ('#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_DASHES = ('-', (0, (5, 1)), (0, (1, 1)))  # for more controls than there are colours
_TOKENS = 'total/sampled'
_INK = '#333333'


def draw_curves(run: Run) -> 'Figure':
  """Six panels: cold start, loss, accuracy, entropies, rollout length, gradient norm."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(15, 8.6), layout='constrained')
  axes = figure.subplots(2, 3)
  figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
  panels = (_cold_start, _loss, _accuracy, _entropy, _length, _grad_norm)
  for panel, ax in zip(panels, axes.flat, strict=True):
    panel(ax, run)
    _finish(ax)
  _legend(figure, run)
  name, seed = run.config.get('name', 'run'), run.config.get('seed')
  figure.suptitle(
    _plain(name if seed is None else f'{name}, seed {seed}'), fontsize=14, fontweight='bold', color=_INK
  )
  return figure


def write_curves(run: Run, path: str | os.PathLike) -> None:
  """Draws them to a PNG."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  figure = draw_curves(run)
  FigureCanvasAgg(figure)  # The file's look must not depend on the session's backend.
  figure.savefig(path, format='png', dpi=110, metadata={'Software': None})


def _cold_start(ax: 'Axes', run: Run) -> None:
  ax.set(title='Cold start', xlabel='update', ylabel='cross-entropy (nats per token)')
  arm = run.arms.get('cold_start')
  if arm:
    _line(ax, arm, 'loss', (_COLD, '-'), x='step')


def _loss(ax: 'Axes', run: Run) -> None:
  ax.set(title='Divergence from the teacher', ylabel='loss (nats per token)')
  _each(ax, run, 'loss')


def _accuracy(ax: 'Axes', run: Run) -> None:
  ax.set(title='Accuracy, sampled', ylabel='right answers (%)')
  _each(ax, run, 'accuracy', scale=100, smooth_only=True)
  for arm, style in _styles(run):
    x, y = _series(arm, 'validation_accuracy')
    ax.plot(x, 100 * y, color=style[0], marker='o', markersize=5, linewidth=0)
  if ax.lines:
    # Arms start from the level of the base on the left, and may reach the teacher's on the right.
    _reference(ax, run, 'teacher_view', x=0.01, side='left')
    _reference(ax, run, 'base', x=0.99, side='right')
    ax.plot([], [], color=_INK, linewidth=1.8, label='rollouts (training)')
    ax.plot([], [], color=_INK, marker='o', markersize=5, linewidth=0, label='validation')
    ax.set_ylim(-2, 100)


def _reference(ax: 'Axes', run: Run, name: str, x: float, side: str) -> None:
  """A level that was measured once, on the test problems."""
  share = ((run.results or {}).get(name) or {}).get('sampled_accuracy')
  if share is None:
    return
  ax.axhline(100 * share, color='#999999', linestyle=(0, (1, 1.5)), linewidth=1.4)
  below = share > 0.08
  ax.annotate(
    f'{label(name)}, test',
    (x, 100 * share),
    xycoords=('axes fraction', 'data'),
    xytext=(0, -3 if below else 3),
    textcoords='offset points',
    ha=side,
    va='top' if below else 'bottom',
    fontsize=8.5,
    color='#666666',
  )


def _entropy(ax: 'Axes', run: Run) -> None:
  ax.set(title='Entropies and forward KL', ylabel='nats per token')
  _each(ax, run, 'student_entropy', smooth_only=True)
  opsd = run.arms['opsd']
  _line(ax, opsd, 'teacher_entropy', (_OPSD, (0, (5, 2))), smooth_only=True)
  _line(ax, opsd, 'forward_kl', (_OPSD, (0, (1, 1.2))), smooth_only=True)
  if ax.lines:
    for style, text in (
      ('-', 'student entropy'),
      ((0, (5, 2)), 'teacher entropy (OPSD)'),
      ((0, (1, 1.2)), 'forward KL (OPSD)'),
    ):
      ax.plot([], [], color=_INK, linestyle=style, linewidth=1.8, label=text)


def _length(ax: 'Axes', run: Run) -> None:
  ax.set(title='Rollout length', ylabel='mean length (tokens)')
  _each(ax, run, 'length_mean')


def _grad_norm(ax: 'Axes', run: Run) -> None:
  ax.set(title='Gradient norm, before clipping', ylabel='global norm (log scale)')
  _each(ax, run, 'grad_norm', positive=True)
  if ax.lines:
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set_yscale('log')
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter('{x:g}')  # 0.1 rather than a power of ten
    ax.yaxis.set_minor_formatter(NullFormatter())


def _each(ax: 'Axes', run: Run, name: str, **options: Any) -> None:
  """One line an arm; OPSD last, so that it lies on top."""
  for arm, style in reversed(_styles(run)):
    _line(ax, arm, name, style, **options)


def _styles(run: Run) -> list[tuple[Arm, tuple[str, Any]]]:
  """Every arm that rolls out with its colour and dashes."""
  found = []
  for i, arm in enumerate(run.trained):
    lap, place = divmod(max(i - 1, 0), len(_CONTROLS))
    colour = _OPSD if arm.name == 'opsd' else _CONTROLS[place]
    found.append((arm, (colour, _DASHES[lap % len(_DASHES)])))
  return found


def _line(
  ax: 'Axes',
  arm: Arm,
  name: str,
  style: tuple[str, Any],
  x: str = _TOKENS,
  scale: float = 1,
  smooth_only: bool = False,
  positive: bool = False,
) -> None:
  """Draws a metric: every update faintly, and a running mean where there are many."""
  at, y = _series(arm, name, x)
  y = np.where(y > 0, y, math.nan) if positive else scale * y
  if not np.isfinite(y).any():
    return
  mean = _running_mean(y, len(y) // 20)
  if mean is not y and not smooth_only:
    ax.plot(at, y, color=style[0], linewidth=0.7, alpha=0.3)
  marker = 'o' if len(y) == 1 else ''  # A line of one point would not be seen.
  ax.plot(at, mean, color=style[0], linestyle=style[1], linewidth=1.8, marker=marker)


def _series(arm: Arm, name: str, x: str = _TOKENS) -> tuple[np.ndarray, np.ndarray]:
  rows = [(row[x], row[name]) for row in arm.metrics if name in row and x in row]
  at, y = np.array(rows, float).reshape(-1, 2).T
  return at, np.where(np.isfinite(y), y, math.nan)


def _running_mean(y: np.ndarray, width: int) -> np.ndarray:
  """Centred mean over about `width` updates, over fewer at the ends; skips what is not finite."""
  if width < 2:
    return y

  def windowed(values):
    return np.convolve(values, np.ones(2 * (width // 2) + 1), 'same')

  known = np.isfinite(y)
  updates = windowed(known.astype(float))
  return windowed(np.where(known, y, 0.0)) / np.where(updates > 0.5, updates, math.nan)


def _finish(ax: 'Axes') -> None:
  """What all panels share: quiet grid, short token counts, a note where there is nothing."""
  from matplotlib.ticker import EngFormatter

  if not ax.get_xlabel():
    ax.set_xlabel('tokens sampled')
  ax.xaxis.set_major_formatter(EngFormatter(sep=''))
  ax.set_title(ax.get_title(), fontsize=11.5, color=_INK)
  ax.spines[['top', 'right']].set_visible(False)
  ax.grid(color='#e4e4e4', linewidth=0.8)
  ax.set_axisbelow(True)
  if not ax.lines:
    ax.set(xticks=[], yticks=[])
    ax.text(
      0.5, 0.5, 'nothing recorded (yet)', transform=ax.transAxes, ha='center', va='center', color='#888888'
    )
    return
  if ax.get_yscale() == 'linear':  # From 0, so that small changes look small.
    low, high = ax.get_ylim()
    ax.set_ylim(min(0, low), high + 0.04 * (high - min(0, low)))
  if ax.get_legend_handles_labels()[1]:
    ax.legend(fontsize=8.5, frameon=True, framealpha=0.85, edgecolor='none')


def _legend(figure: 'Figure', run: Run) -> None:
  """One key of the arms' colours for all panels."""
  from matplotlib.lines import Line2D

  keys = [
    Line2D([], [], color=colour, linestyle=dashes, linewidth=2.6, label=_plain(arm.label))
    for arm, (colour, dashes) in _styles(run)
    if arm.metrics
  ]
  if keys:
    figure.legend(
      handles=keys, loc='outside lower center', ncols=min(len(keys), 4), frameon=False, fontsize=10.5
    )


def _plain(text: str) -> str:
  """A dollar sign would start a formula."""
  return str(text).replace('$', r'\$')
