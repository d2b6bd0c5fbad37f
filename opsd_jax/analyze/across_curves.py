"""Curves of every arm over several seeds: what accuracy costs in tokens and in FLOPs."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from opsd_jax.analyze import across, runs
from opsd_jax.analyze.across import Course
from opsd_jax.analyze.runs import Run

if TYPE_CHECKING:
  from matplotlib.axes import Axes

# Okabe and Ito's colours; OPSD's own is in every row of panels.
_OPSD = '#0072B2'
_OTHERS = ('#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#555555')
_COSTS = {'tokens': 'completion tokens', 'scored': 'tokens scored', 'flops': 'model FLOPs'}


def write(found: Sequence[Run], path: str | os.PathLike) -> None:
  """Draws a row of panels for every six arms beside OPSD, and a last one of what was kept, to a PNG."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  names = [name for name in found[0].arms if name not in ('cold_start', 'opsd')]
  groups = [names[i : i + len(_OTHERS)] for i in range(0, len(names), len(_OTHERS))] or [[]]
  figure = Figure(figsize=(15, 4.2 * (len(groups) + 1)), layout='constrained')
  axes = figure.subplots(len(groups) + 1, 3, squeeze=False)
  for row, group in zip(axes, groups, strict=False):
    for ax, cost in zip(row, _COSTS, strict=True):
      _accuracy(ax, found, group, cost)
  _kept(axes[-1], found, groups)
  FigureCanvasAgg(figure)
  figure.savefig(path, format='png', dpi=100, metadata={'Software': None})


def averaged(found: Sequence[Run], name: str, cost: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
  """Cost [K], accuracy [K] and half its interval [K], as means over seeds at validations that all have."""
  ways = [way for run in found if (way := across.course(run, name)) is not None]
  if not ways:
    return None
  count = min(len(way.accuracy) for way in ways)
  at = np.mean([getattr(way, cost)[:count] for way in ways], 0)
  means = [across.mean(values) for values in zip(*(way.accuracy[:count] for way in ways), strict=True)]
  return at, np.array([m.value for m in means]), np.array([m.half or 0.0 for m in means])


def _accuracy(ax: 'Axes', found: Sequence[Run], names: Sequence[str], cost: str) -> None:
  for name, colour in zip(('opsd', *names), (_OPSD, *_OTHERS), strict=False):
    points = averaged(found, name, cost)
    if points is None:
      continue
    x, y, half = points
    ax.plot(x, 100 * y, color=colour, marker='.', linewidth=1.6, label=runs.label(name))
    ax.fill_between(x, 100 * (y - half), 100 * (y + half), color=colour, alpha=0.15, linewidth=0)
  ax.set(xlabel=_COSTS[cost], ylabel='right answers, validation (%)', ylim=(0, 101))
  _finish(ax, cost == 'tokens')


def _kept(axes: Sequence['Axes'], found: Sequence[Run], groups: Sequence[Sequence[str]]) -> None:
  """Accuracy on other tasks while the arms learn; a panel for every group, the rest stay empty."""
  for ax, names in zip(axes, groups, strict=False):
    for name, colour in zip(('opsd', *names), (_OPSD, *_OTHERS), strict=False):
      ways = [way for run in found if (way := across.course(run, name)) is not None and way.kept]
      if ways:
        ax.plot(*_mean_kept(ways), color=colour, marker='.', linewidth=1.6, label=runs.label(name))
    ax.set(xlabel='completion tokens', ylabel='right answers, other tasks (%)', ylim=(0, 101))
    _finish(ax, bool(ax.lines))
  for ax in axes[len(groups) :]:
    ax.set_axis_off()


def _mean_kept(ways: Sequence[Course]) -> tuple[np.ndarray, np.ndarray]:
  count = min(len(way.tokens) for way in ways)
  kept = [np.mean([values[:count] for values in way.kept.values()], 0) for way in ways]
  return np.mean([way.tokens[:count] for way in ways], 0), 100 * np.mean(kept, 0)


def _finish(ax: 'Axes', legend: bool) -> None:
  from matplotlib.ticker import EngFormatter

  ax.set_xlim(left=0)
  ax.xaxis.set_major_formatter(EngFormatter(sep=''))
  ax.spines[['top', 'right']].set_visible(False)
  ax.grid(color='#e4e4e4', linewidth=0.8)
  ax.set_axisbelow(True)
  if legend:
    ax.legend(fontsize=8, framealpha=0.85, edgecolor='none')
