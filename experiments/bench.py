"""Times rollouts and a whole step beside other programs, and the parts of a step against named baselines.

  python -m experiments.bench --workdir=runs/bench
  python -m experiments.bench --workdir=runs/bench --peers=

All programs get the same weights, prompts and ends of rows (`experiments/benching/workload.py`), one after
another on the same machine, each in a process of its own and warmed up before its clock starts. Ratios
compare within this run; absolute numbers belong to the machine named in results.json. The load average
before each measurement stands beside it: on a busy machine, CPU seconds say more than the clock.
"""

import dataclasses
import os

from absl import flags

from experiments import entry, study
from experiments.benching import parts, peers, scoring, tables, workload
from opsd_jax.config import ConfigError, nearest, require
from opsd_jax.files import write_json, write_text

_WORKDIR = flags.DEFINE_string('workdir', 'runs/bench', 'Folder of results.json and results.md.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed repetitions of a part of a step.', lower_bound=1)
_SMOKE = flags.DEFINE_bool('smoke', False, 'Tiny sizes, to see that it runs; the numbers mean nothing.')
_PEERS = flags.DEFINE_list('peers', list(peers.PEERS), 'Programs to time beside ours; empty: none.')
_PEERS_PYTHON = flags.DEFINE_list(
  'peers_python', [], 'NAME=PYTHON of a peer whose environment is not the one that make sets up.'
)
_DATA = flags.DEFINE_string(
  'data', None, 'Folder with gsm8k/ and tokenizers/, for the padding of its lengths.'
)


def main() -> None:
  """Runs every measurement, prints markdown tables and writes results.json and results.md."""
  for name in _PEERS.value:
    require(name in peers.PEERS, f'--peers: there is no {name!r}.{nearest(name, peers.PEERS)}')
  pythons = _pythons()
  folder = _WORKDIR.value
  try:
    os.makedirs(folder, exist_ok=True)
  except OSError as error:
    raise ConfigError(f'--workdir={folder} cannot be written: {error.strerror}.') from error
  work = workload.write_folder(folder, _SMOKE.value)
  reports = {
    f'ours, {name}': peers.run(program, work, _out(f'own_{name}')) for name, program in peers.OWN.items()
  }
  for name in _PEERS.value:
    program = peers.PEERS[name]
    reports[program.name] = peers.run(program, work, _out(f'peer_{name}'), pythons.get(name))
  sampled = {name: reports[name] for name in (peers.TUNIX, peers.TRANSFORMERS) if name in reports}
  found = {
    'rollouts': tables.rollouts(reports['ours, rollouts'], sampled),
    'step': tables.steps(reports['ours, step'], reports.get(peers.TORCH, {'missing': 'left out'})),
  }
  texts = [tables.markdown(rows) for rows in found.values()]
  rows = parts.measure(parts.TINY if _SMOKE.value else parts.Sizes(), _REPEATS.value)
  scored = [] if _SMOKE.value else scoring.measure(_DATA.value, _REPEATS.value)
  texts += [parts.table(rows), *([scoring.table(scored)] if scored else [])]
  found |= {
    'parts': [dataclasses.asdict(r) for r in rows],
    'scoring': [dataclasses.asdict(r) for r in scored],
  }
  about = {'versions': study.versions(), 'machine': study.machine(), 'repeats': _REPEATS.value}
  write_json(os.path.join(folder, 'results.json'), found | about | {'reports': reports})
  write_text(os.path.join(folder, 'results.md'), '\n\n'.join(texts) + '\n')
  print('\n\n'.join(texts))


def _out(name: str) -> str:
  return os.path.join(_WORKDIR.value, f'{name}.json')


def _pythons() -> dict[str, str]:
  """The interpreters that --peers_python names."""
  found = {}
  for text in _PEERS_PYTHON.value:
    name, _, python = text.partition('=')
    require(
      name in peers.PEERS and bool(python),
      f'--peers_python: {text!r} is not NAME=PYTHON with a name of {", ".join(peers.PEERS)}.',
    )
    found[name] = python
  return found


if __name__ == '__main__':
  entry.run(main, __doc__)
