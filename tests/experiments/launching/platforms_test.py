"""What is started on each platform, word for word, and what cannot be started."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from experiments.launching import command, plan, platforms
from experiments.launching.platforms import Where
from opsd_jax.config import ConfigError

TRAIN = ['experiments.train', '--experiment=quickstart', '--workdir=runs/x']
TPU = Where('tpu_vm', tpu='pod', zone='us-central1-a')
GKE = Where('gke', cluster='big', zone='us-east5-b', tpu_type='v5litepod-256', image='gcr.io/p/opsd:1')
# Words that a shell, Python's format or absl could take apart.
HARD = [
  '--set=a=x y',
  "--set=b=it's",
  '--set=c="q"',
  '--set=d=1,2',
  r'--set=e=\boxed $HOME `id`',
  '--set=f={}',
  '-x;#*?~',
]


def commands(where, given=TRAIN, sweeps=()):
  built = platforms.build(where, command.parse(given), sweeps)
  return [list(words) for words in built.before] + [plan.words(built, run) for run in built.runs]


def test_local():
  shared = ['py', '-m', 'experiments.train', '--experiment=quickstart']
  assert commands(Where('local', python='py')) == [[*shared, '--workdir=runs/x']]
  assert commands(Where('local', python='py'), sweeps=['seed=0,1', 'model.tie_embeddings=true']) == [
    [
      *shared,
      '--set=seed=0',
      '--set=model.tie_embeddings=true',
      '--workdir=runs/x/seed_0__model.tie_embeddings_true',
    ],
    [
      *shared,
      '--set=seed=1',
      '--set=model.tie_embeddings=true',
      '--workdir=runs/x/seed_1__model.tie_embeddings_true',
    ],
  ]


def test_tpu_vm():
  ssh = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'pod', '--zone=us-central1-a']
  there = 'cd opsd-jax && exec env OPSD_PROCESSES=auto .venv/bin/python -m experiments.train'
  there += ' --experiment=quickstart --workdir=runs/x'
  assert commands(TPU) == [[*ssh, '--worker=all', f'--command={there}']]
  where = Where('tpu_vm', '~/py', 'pod', 'us-central1-a', 'mine', 'some where', extra=('--internal-ip',))
  [one, two] = commands(where, sweeps=['seed=0,1'])
  assert one[:-1] == two[:-1] == [*ssh, '--project=mine', '--worker=all', '--internal-ip']
  assert two[-1] == (
    "--command=cd 'some where' && exec env OPSD_PROCESSES=auto '~/py' -m experiments.train "
    '--experiment=quickstart --set=seed=1 --workdir=runs/x/seed_1'
  )


def test_tpu_vm_prepared_once():
  found = commands(Where('tpu_vm', tpu='pod', zone='z', prepare=True), sweeps=['seed=0,1'])
  assert len(found) == 3 + 2
  assert found[0] == ['git', 'archive', '--format=tar.gz', '--output=opsd-jax.tar.gz', 'HEAD']
  scp = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'scp', 'opsd-jax.tar.gz', 'pod:opsd-jax.tar.gz']
  assert found[1] == [*scp, '--zone=z', '--worker=all']
  assert found[2][:-1] == ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'pod', '--zone=z', '--worker=all']
  assert found[2][-1] == (
    '--command=mkdir -p opsd-jax && tar -xzf opsd-jax.tar.gz -C opsd-jax && cd opsd-jax && '
    'python3 -m pip install --user --quiet uv && '
    'python3 -m uv venv --quiet --allow-existing --python=3.12 .venv && '
    'python3 -m uv pip install --quiet --python=.venv/bin/python -r requirements.txt -r requirements/tpu.txt'
  )


def test_gke():
  create = ['xpk', 'workload', 'create', '--cluster=big', '--zone=us-east5-b']
  slice_ = ['--tpu-type=v5litepod-256', '--docker-image=gcr.io/p/opsd:1']
  process = 'exec env OPSD_PROCESSES=auto python -m experiments.train --experiment=quickstart'
  assert commands(GKE) == [[*create, *slice_, '--workload=opsd', f'--command={process} --workdir=runs/x']]
  where = Where(**vars(GKE) | {'project': 'p', 'extra': ('--spot', '--max-restarts=3'), 'title': 'seeds'})
  assert commands(where, sweeps=['seed=0,1'])[1] == [
    *create,
    '--project=p',
    *slice_,
    '--spot',
    '--max-restarts=3',
    '--workload=seeds-1',
    f'--command={process} --set=seed=1 --workdir=runs/x/seed_1',
  ]


@pytest.mark.parametrize('where', [TPU, GKE])
def test_words_survive_a_shell(tmp_path, where):
  """The remote command is run by a real shell, with a program in Python's place that tells its words."""
  told = tmp_path / 'told'
  told.write_text('#!/bin/sh\nprintf "%s\\n" "$OPSD_PROCESSES" "$PWD" "$@"\n')
  told.chmod(0o755)
  (tmp_path / 'opsd-jax').mkdir()
  built = commands(Where(**vars(where) | {'python': str(told)}), [*TRAIN, *HARD])
  text = built[0][-1].removeprefix('--command=')
  done = subprocess.run(['bash', '-c', text], cwd=tmp_path, text=True, capture_output=True, check=True)
  folder = tmp_path / 'opsd-jax' if where is TPU else tmp_path
  assert done.stdout.splitlines() == ['auto', str(folder), '-m', *TRAIN, *HARD]


def test_printed_lines_survive_a_shell(tmp_path):
  code = 'import json, sys; print(json.dumps(sys.argv[1:]))'
  built = platforms.build(Where('local', python=sys.executable), command.parse([*TRAIN, *HARD]), ['seed=0'])
  [line] = plan.lines(built)
  words = plan.words(built, built.runs[0])
  assert shlex.split(line) == words
  again = line.replace(' -m experiments.train', f' -c {shlex.quote(code)}', 1)
  done = subprocess.run(again, shell=True, text=True, capture_output=True, cwd=tmp_path, check=True)
  assert json.loads(done.stdout) == words[3:]


@pytest.mark.parametrize(
  ('where', 'given', 'sweeps', 'said'),
  [
    (Where('tpu'), TRAIN, [], "--platform is 'tpu', which is not a choice. Did you mean 'tpu_vm'?"),
    (Where('tpu_vm', zone='z'), TRAIN, [], '--platform=tpu_vm needs --tpu: the name of a TPU VM'),
    (Where('tpu_vm', tpu='pod'), TRAIN, [], '--platform=tpu_vm needs --zone: where it is'),
    (Where(**vars(GKE) | {'cluster': ''}), TRAIN, [], '--platform=gke needs --cluster: the name of a GKE'),
    (Where(**vars(GKE) | {'zone': ''}), TRAIN, [], '--platform=gke needs --zone'),
    (Where(**vars(GKE) | {'tpu_type': ''}), TRAIN, [], '--platform=gke needs --tpu_type'),
    (Where(**vars(GKE) | {'image': ''}), TRAIN, [], '--platform=gke needs --image'),
    (Where(**vars(GKE) | {'title': 'My_Run'}), TRAIN, [], "--title is 'My_Run'; GKE takes"),
    (Where(**vars(GKE) | {'title': 'a' * 37}), TRAIN, [], 'GKE takes up to 36'),
    (GKE, [*TRAIN, '--set=a=$(HOME)'], [], 'Kubernetes would replace it'),
    (Where('local', zone='z', tpu='x'), TRAIN, [], '--tpu --zone says nothing to --platform=local'),
    (Where(**vars(TPU) | {'folder': '~/x'}), TRAIN, [], '--folder=~/x is seen from the home folder'),
    (TPU, [], [], 'nothing to launch: write the command after --'),
    (TPU, ['train'], [], "'train' is nothing to launch. Did you mean 'experiments.train'?"),
    (TPU, ['experiments.trian'], [], "Did you mean 'experiments.train'?"),
    (TPU, ['experiments.train', '--set=a=1\n2'], [], 'has a line break'),
    (TPU, ['experiments.train', '--workdir', 'gs://x/y'], [], '--workdir=gs://x/y is a bucket; mount it'),
    (TPU, ['experiments.train'], ['seed=0,1'], '--sweep=seed=0,1 needs a folder for its runs'),
    (TPU, TRAIN, ['seed='], 'has no values'),
  ],
)
def test_what_cannot_be_launched(where, given, sweeps, said):
  with pytest.raises(ConfigError) as caught:
    commands(where, given, sweeps)
  assert said in str(caught.value)


def test_the_folder_of_a_sweep_replaces_the_one_that_was_named():
  given = ['experiments.train', '--workdir', 'a', '--set=x=1', '--workdir=b', '--list']
  [found] = commands(Where('local', python='py'), given, ['seed=3'])
  assert found == [
    'py',
    '-m',
    'experiments.train',
    '--set=x=1',
    '--list',
    '--set=seed=3',
    '--workdir=b/seed_3',
  ]
  assert commands(Where('local', python='py'), given)[0][3:] == given[1:]


def test_no_jax_is_needed():
  code = (
    'import sys, experiments.launch_xm; print([m for m in ("jax", "numpy", "xmanager") if m in sys.modules])'
  )
  environment = {'PATH': os.environ['PATH']}
  done = subprocess.run(
    [sys.executable, '-c', code], text=True, capture_output=True, env=environment, check=True
  )
  assert done.stdout.strip() == '[]'
