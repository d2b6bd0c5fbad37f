"""One HTML page of an experiment that was run with several seeds."""

import base64
import os
from collections.abc import Mapping, Sequence
from typing import Any

from opsd_jax import files
from opsd_jax.analyze import across, across_curves, page, table
from opsd_jax.analyze.runs import Run


def write(
  folder: str | os.PathLike, found: Sequence[Run], summary: Mapping[str, Mapping[str, Any]], target: float
) -> str:
  """Writes `report.html` and `curves.png` of runs and their summary to `folder`; returns the page's path."""
  picture = os.path.join(folder, 'curves.png')
  across_curves.write(found, picture)
  with open(picture, 'rb') as file:
    image = base64.b64encode(file.read()).decode()
  levels = across.level_cells(summary, found[0].labels)
  name, seeds = found[0].config.get('name', 'run'), [str(run.config.get('seed', '?')) for run in found]
  path = os.path.join(folder, 'report.html')
  sections = (
    ('', f'<p>{NOTE}</p>'),
    ('Arms', table.html_rows(across.cells(summary, target, found[0].labels))),
    ('By difficulty', table.html_rows(levels) if levels else ''),
    ('Curves', f'<img alt="accuracy against cost of all arms" src="data:image/png;base64,{image}">'),
  )
  files.write_text(path, page.render(f'{name}, seeds {", ".join(seeds)}', sections))
  return path


NOTE = (
  'Means over seeds ± half of the 95 % interval (Student’s t over seeds). Tokens are those that were drawn '
  'or given as completions, scored ones those that the student read for its loss, a teacher, or the weights '
  'of samples; what an arm’s warm start and its controller took is in them, the cold start that all share is '
  'not.'
)


def plain(summary: dict[str, dict[str, Any]]) -> dict[str, Any]:
  """A summary as JSON has it: a mean as its value and half its interval."""

  def one(value: Any) -> Any:
    if isinstance(value, across.Mean):
      return value._asdict()
    return {key: one(item) for key, item in value.items()} if isinstance(value, dict) else value

  return one(summary)
