"""From a command to what is really started: here, on the hosts of a TPU VM, or on a cluster.

XManager's public executors cannot ask for a current TPU (its Vertex knows v2 and v3, its Kubernetes writes
the selectors of a scheme that is gone), so what it starts for those is `gcloud` and `xpk` on this machine.
"""

import dataclasses
import re
import shlex
from collections.abc import Callable, Sequence

from experiments.launching.command import Command, expand
from experiments.launching.plan import Plan, Run, flag_words
from opsd_jax.config import require, require_choice

TARBALL = 'opsd-jax.tar.gz'


@dataclasses.dataclass(frozen=True)
class Where:
  """Where to launch; the flags of `experiments.launch_xm` say what each one is.

  Attributes:
    python: the interpreter on the machine that runs, '' for the usual one.
    folder: of the repository on a TPU VM's hosts, seen from the home folder.
    extra: words more for gcloud or xpk.
  """

  platform: str
  python: str = ''
  tpu: str = ''
  zone: str = ''
  project: str = ''
  folder: str = 'opsd-jax'
  cluster: str = ''
  tpu_type: str = ''
  image: str = ''
  title: str = 'opsd'
  extra: tuple[str, ...] = ()
  prepare: bool = False


def build(where: Where, command: Command, sweeps: Sequence[str]) -> Plan:
  """What to start on the platform.

  Raises:
    ConfigError: an unknown platform, or something that it needs is missing.
  """
  require_choice('--platform', where.platform, tuple(PLATFORMS))
  shared, runs = expand(command, sweeps)
  taken = _TAKEN[where.platform]
  idle = [
    name for name in sorted(set().union(*_TAKEN.values())) if name not in taken and getattr(where, name)
  ]
  require(not idle, f'--{" --".join(idle)} says nothing to --platform={where.platform}; leave it out.')
  for name in taken:
    missing = name in _NEEDED and not getattr(where, name)
    require(not missing, f'--platform={where.platform} needs --{name}: {_NEEDED.get(name)}.')
  return PLATFORMS[where.platform](where, (command.module, *shared), runs)


def _local(where: Where, shared: Sequence[str], runs: Sequence[Run]) -> Plan:
  return Plan(where.python, ('-m', *shared), tuple(runs))


def _tpu_vm(where: Where, shared: Sequence[str], runs: Sequence[Run]) -> Plan:
  require(
    not where.folder.startswith('~'),
    f'--folder={where.folder} is seen from the home folder already; leave out what is before opsd-jax.',
  )
  reach = (f'--zone={where.zone}', *_project(where), '--worker=all')
  ssh = ('compute', 'tpus', 'tpu-vm', 'ssh', where.tpu, *reach, *where.extra)
  there = f'cd {shlex.quote(where.folder)} && '
  python = where.python or '.venv/bin/python'
  commands = tuple(Run(run.name, {'command': there + _process(python, shared, run)}) for run in runs)
  return Plan('gcloud', ssh, commands, _preparation(where, reach, ssh) if where.prepare else ())


def _preparation(where: Where, reach: Sequence[str], ssh: Sequence[str]) -> tuple[tuple[str, ...], ...]:
  """The last commit on every host, with an environment whose Python uv brings: images have an older one."""
  folder = shlex.quote(where.folder)
  install = (
    f'mkdir -p {folder} && tar -xzf {TARBALL} -C {folder} && cd {folder} && '
    'python3 -m pip install --user --quiet uv && '
    'python3 -m uv venv --quiet --allow-existing --python=3.12 .venv && '
    'python3 -m uv pip install --quiet --python=.venv/bin/python '
    '-r requirements.txt -r requirements/tpu.txt'
  )
  scp = ('gcloud', 'compute', 'tpus', 'tpu-vm', 'scp', TARBALL, f'{where.tpu}:{TARBALL}', *reach)
  return (
    ('git', 'archive', '--format=tar.gz', f'--output={TARBALL}', 'HEAD'),
    scp,
    ('gcloud', *ssh, f'--command={install}'),
  )


def _gke(where: Where, shared: Sequence[str], runs: Sequence[Run]) -> Plan:
  require(
    re.fullmatch('[a-z]([-a-z0-9]*[a-z0-9])?', where.title) is not None and len(where.title) <= 36,
    f'--title is {where.title!r}; GKE takes up to 36 of a-z, 0-9 and -, and a letter first.',
  )
  create = (
    'workload',
    'create',
    f'--cluster={where.cluster}',
    f'--zone={where.zone}',
    *_project(where),
    f'--tpu-type={where.tpu_type}',
    f'--docker-image={where.image}',
    *where.extra,
  )
  numbers = [f'{where.title}-{index}' for index in range(len(runs))] if len(runs) > 1 else [where.title]
  commands = []
  for name, run in zip(numbers, runs):
    text = _process(where.python or 'python', shared, run)
    # Kubernetes reads the command as a template: $(NAME) is a variable, $$ a dollar sign.
    require(
      '$(' not in text and '$$' not in text,
      f'$( or $$ is in the command {text}; Kubernetes would replace it. Write the setting in a recipe.',
    )
    commands.append(Run(run.name, {'workload': name, 'command': text}))
  return Plan('xpk', create, tuple(commands))


def _process(python: str, shared: Sequence[str], run: Run) -> str:
  """One process of a run, for a shell: `exec`, so that a signal for the shell reaches the run."""
  words = ('env', 'OPSD_PROCESSES=auto', python, '-m', *shared, *flag_words(run.flags))
  return f'exec {shlex.join(words)}'


def _project(where: Where) -> tuple[str, ...]:
  return (f'--project={where.project}',) if where.project else ()


PLATFORMS: dict[str, Callable[[Where, Sequence[str], Sequence[Run]], Plan]] = {
  'local': _local,
  'tpu_vm': _tpu_vm,
  'gke': _gke,
}
# Flags that a platform takes; those of `_NEEDED` must be there.
_TAKEN = {
  'local': (),
  'tpu_vm': ('tpu', 'zone', 'project', 'extra', 'prepare'),
  'gke': ('cluster', 'zone', 'tpu_type', 'image', 'project', 'extra'),
}
_NEEDED = {
  'tpu': 'the name of a TPU VM that is there (gcloud compute tpus tpu-vm list)',
  'zone': "where it is, as --zone=us-central1-a (gcloud's default is not used: runs say where they are)",
  'cluster': 'the name of a GKE cluster that xpk made (xpk cluster list)',
  'tpu_type': 'the slice to ask for, as --tpu_type=v5litepod-16',
  'image': 'a container image with this repository (see Dockerfile), as --image=gcr.io/PROJECT/opsd-jax',
}
