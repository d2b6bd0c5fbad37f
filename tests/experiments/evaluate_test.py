"""The evaluate command: what it asks and keeps, how it goes on, and what it refuses."""

import contextlib
import dataclasses
import functools
import io
import json
import random
import re
import resource
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import entry, evaluate
from experiments.sitting import book as books
from experiments.sitting import judging, record
from experiments.sitting import sit as sitting
from opsd_jax import mesh as meshes
from opsd_jax.config import ConfigError
from opsd_jax.distill.views import stable_id
from opsd_jax.evaluate import protocols, samples
from opsd_jax.grade.programs import judge as programs
from opsd_jax.models.folder import read
from opsd_jax.records import Graded, Problem, Prompts, Verdict
from opsd_jax.rollout import decode
from opsd_jax.rollout.config import SamplingConfig
from opsd_jax.text.tokenizer import Message, TokenizerConfig, make_tokenizer
from tests.experiments import boxing_model, model_folder, real_text, tiny

# Prompts of two widths, so that there are several batches, the last of which is not full.
ASKED = [
  {'problem': row['question'] + ' Think.' * 40 * (i % 5 == 0), 'answer': '038'[i % 3]}
  for i, row in enumerate(real_text.rows(11))
]
SAMPLED = ('--samples=3', '--max_tokens=13', '--batch=4', '--seed=7', '--every=2')
TEST = 'def check(candidate):\n  pass\n'  # of a program
RESULTS = ('settings.json', 'mine/samples.jsonl', 'results.json', 'table.md')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('evaluate')
  return boxing_model.write_model(root / 'model', real_text.write_tokenizer(root / 'texts'))


@pytest.fixture(scope='module')
def asked(tmp_path_factory):
  return model_folder.write_lines(tmp_path_factory.mktemp('asked') / 'asked.jsonl', ASKED)


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
  """One device, because eight compile for long, and weights that are read once."""
  if 'eight' not in request.node.name:
    make = meshes.make_mesh
    monkeypatch.setattr(meshes, 'make_mesh', lambda config, devices=None: make(config, jax.devices()[:1]))
    monkeypatch.setattr(read, 'load', load)


@functools.cache
def load(folder, spec, mesh, dtype='float32', real=read.load):
  return real(folder, spec, mesh, dtype)


def call(*given):
  """The command in this process: its code, and what it printed to both outputs."""
  printed, told = io.StringIO(), io.StringIO()
  with flagsaver.flagsaver(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
    flags.FLAGS(['evaluate', *map(str, given)])
    code = evaluate.main()
  return code, printed.getvalue(), told.getvalue()


def flagged(folder, asked, output, *more):
  return f'--model={folder}', f'--benchmarks=mine={asked}', f'--output={output}', *SAMPLED, *more


def rows(output, benchmark='mine'):
  text = (output / benchmark / 'samples.jsonl').read_text(encoding='utf-8')
  return [json.loads(line) for line in text.splitlines()]


def contents(output):
  return {name: (output / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope='module')
def whole(folder, asked, tmp_path_factory):
  """An evaluation that nothing interrupted, and what it printed."""
  output, make = tmp_path_factory.mktemp('whole') / 'out', meshes.make_mesh
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(meshes, 'make_mesh', lambda config, devices=None: make(config, jax.devices()[:1]))
    code, printed, told = call(*flagged(folder, asked, output))
  assert code == 0
  return output, printed, told


def prompt_ids(folder, problem):
  tokenizer = make_tokenizer(TokenizerConfig(path=str(folder)))
  instruction = 'Please reason step by step, and put your final answer within \\boxed{}.'
  text = f'{tokenizer.protect(problem)}\n\n{instruction}'
  return tokenizer.encode_template(tokenizer.chat([Message('user', text)], thinking=True))


def expected(folder, number):
  """Ids of a problem's three completions, by `decode.generate` alone."""
  mesh = meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1])
  params = load(str(folder), boxing_model.SPEC, mesh)
  ids = prompt_ids(folder, ASKED[number]['problem'])
  table = np.zeros((1, 512), np.int32)
  table[0, : len(ids)] = ids
  problem = Problem(f'mine/{number}', '', '', '', '')
  rollout = decode.generate(
    boxing_model.SPEC,
    params,
    Prompts(ids=table, length=np.int32([len(ids)]), problem_id=np.uint32([stable_id(problem)])),
    SamplingConfig(max_tokens=13, temperature=1.0, top_p=0.95),
    eos_ids=make_tokenizer(TokenizerConfig(path=str(folder))).eos_ids,
    per_question=3,
    seed=7,
    valid_vocab=305,
  )
  return [row[:n].tolist() for row, n in zip(np.asarray(rollout.ids), np.asarray(rollout.length))]


def test_every_sample_is_there_with_its_verdict(whole, folder):
  found = rows(whole[0])
  assert [(r['problem'], r['sample']) for r in found] == [
    (f'mine/{i}', j) for i in range(11) for j in range(3)
  ]
  for number in (0, 4):
    ids = expected(folder, number)
    assert [row['ids'] for row in found[3 * number : 3 * number + 3]] == ids
    assert found[3 * number]['prompt_tokens'] == len(prompt_ids(folder, ASKED[number]['problem']))
  for row, asked in zip(found, [row for row in ASKED for _ in range(3)]):
    said = re.fullmatch(r'\.+\\boxed\{(\d)\}', row['completion'])
    verdict = 'unformatted' if said is None else 'correct' if said[1] == asked['answer'] else 'wrong'
    assert row['verdicts'] == {'opsd': verdict, 'strict': verdict}
    assert row['answer'] == (said and said[1])
    assert row['stopped'] == (row['ids'][-1] in (302, 300)) and len(row['ids']) <= 13
  assert {row['verdicts']['opsd'] for row in found} == {'correct', 'wrong', 'unformatted'}
  assert {row['stopped'] for row in found} == {True, False}


def test_the_numbers_and_how_they_were_got(whole):
  output, printed, told = whole
  found = rows(output)
  right = np.reshape([row['verdicts']['opsd'] == 'correct' for row in found], (-1, 3))
  results = json.loads((output / 'results.json').read_text())
  score = results['benchmarks']['mine']['scores']['opsd']
  assert score['average']['value'] == pytest.approx(right.mean())
  assert score['pass_at']['3'] == pytest.approx(right.any(1).mean())
  settings = json.loads((output / 'settings.json').read_text())
  assert results['settings'] == settings
  wanted = {'temperature': 1.0, 'top_p': 0.95, 'thinking': True, 'max_tokens': 13, 'seed': 7, 'samples': 3}
  assert {name: settings[name] for name in wanted} == wanted
  assert settings['changed'] == ['max_tokens: 38912 -> 13', 'samples: 12 -> 3', 'seed: 0 -> 7']
  assert settings['prompt']['maths'].endswith('put your final answer within \\boxed{}.'), 'as it is asked'
  table = (output / 'table.md').read_text()
  assert table == printed
  for word in ('opsd', '0.95', 'boxed', 'jax', '11 × 3', 'Licence of mine'):
    assert word in table, word
  assert 'mine: 11 problems; licence: of the file' in told
  assert re.search(r'\[evaluate\] mine 33/33  accuracy 0\.\d', told) and 'loaded in' in told


class Killed(BaseException):
  """What a test ends a command with; nothing catches it."""


def interrupt(monkeypatch, rng):
  """Ends the command at a random point: before a dispatch, a marking or a writing, or within one."""
  where = rng.choice(['draw', 'judge', 'add', 'tear'])
  left = rng.randrange(1, 5 if where == 'judge' else 20)  # of as many as there are at least

  def counted(real):
    def ended(*args, **named):
      nonlocal left
      left -= 1
      if left == 0:
        if where == 'tear':
          text = ''.join(map(samples.to_line, args[1])) or '{"problem": '
          with open(args[0].path, 'a', encoding='utf-8') as file:
            file.write(text[: rng.randrange(len(text))])
        raise Killed
      return real(*args, **named)

    return ended

  if where == 'draw':
    real = sitting.draw
    step = counted(lambda part: part)
    monkeypatch.setattr(sitting, 'draw', lambda *args: map(step, real(*args)))
  elif where == 'judge':
    monkeypatch.setattr(judging, 'judge', counted(judging.judge))
  else:
    monkeypatch.setattr(books, 'add', counted(books.add))


@pytest.mark.parametrize('seed', range(20))
def test_interrupted_anywhere_it_ends_the_same(whole, folder, asked, tmp_path, monkeypatch, seed):
  rng, output, stops = random.Random(seed), tmp_path / 'out', 0
  for _ in range(rng.randrange(1, 4)):
    with monkeypatch.context() as patched:
      interrupt(patched, rng)
      try:
        call(*flagged(folder, asked, output))
      except Killed:
        stops += 1
  assert stops
  lines = (output / 'mine' / 'samples.jsonl').read_bytes().split(b'\n')[:-1]
  there = {(row['problem'], row['sample']) for row in map(json.loads, lines)}
  budgets = []
  with monkeypatch.context() as patched:
    real = sitting.draw
    patched.setattr(sitting, 'draw', lambda *args: budgets.append(args[2]) or real(*args))
    assert call(*flagged(folder, asked, output))[0] == 0
  assert contents(output) == contents(whole[0])
  assert sum(int((budget > 0).sum()) for budget in budgets) == 33 - len(there), 'nothing is drawn twice'


def test_a_finished_one_is_told_again_without_a_model(whole, folder, asked, monkeypatch):
  output, printed, _ = whole
  before = contents(output)
  monkeypatch.setattr(read, 'load', None)
  (output / 'table.md').unlink()
  code, again, _ = call(*flagged(folder, asked, output))
  assert (code, again) == (0, printed) and contents(output) == before


def test_ctrl_c_says_how_to_go_on(folder, asked, tmp_path, monkeypatch):
  def stopped(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(sitting, 'draw', stopped)
  code, _, told = call(*flagged(folder, asked, tmp_path / 'out'))
  assert code == 130 and 'the same command goes on from here' in told


@pytest.fixture
def copied(whole, tmp_path):
  return model_folder.copy(whole[0], tmp_path / 'copied')


def test_other_rules_mark_what_is_there_anew(copied, whole, folder, asked, monkeypatch):
  monkeypatch.setattr(read, 'load', None)
  _, _, told = call(*flagged(folder, asked, copied, '--rules=strict'))
  assert 'marking what is there anew' in told
  settings = json.loads((copied / 'settings.json').read_text())
  assert settings['rules'] == settings['grading']['answers']['rules'] == 'strict'
  assert 'rules: opsd -> strict' in settings['changed']
  results = json.loads((copied / 'results.json').read_text())
  assert results['benchmarks']['mine']['primary'] == 'strict'
  assert [row['ids'] for row in rows(copied)] == [row['ids'] for row in rows(whole[0])]
  call(*flagged(folder, asked, copied))
  assert contents(copied) == contents(whole[0])


def test_a_kill_while_marking_anew_leaves_no_wrong_verdict(copied, whole, folder, asked, monkeypatch):
  def partly(book, judge):
    books.mark_again(book, lambda found: [dataclasses.replace(s, verdicts={}) for s in found])
    raise Killed

  with monkeypatch.context() as patched, pytest.raises(Killed):
    patched.setattr(evaluate, 'mark_again', partly)
    call(*flagged(folder, asked, copied, '--grade_seconds=4'))
  assert rows(copied)[0]['verdicts'] == {}
  call(*flagged(folder, asked, copied))  # as it was at first
  assert contents(copied) == contents(whole[0])


@pytest.mark.parametrize(
  'more, message',
  [
    (('--temperature=0.5',), r'temperature: 1.0 -> 0.5'),
    (('--seed=8', '--batch=8'), r'batch: 4 -> 8; seed: 7 -> 8'),
    (('--samples=4',), r'samples: 3 -> 4'),
    (('--limit=5',), r'benchmarks.mine.problems: 11 -> 5'),
    (('--system=Be brief.',), r'benchmarks.mine.prompts: .*system:'),
    (('--nothinking',), 'thinking: True -> False'),
  ],
)
def test_other_settings_are_refused(copied, folder, asked, more, message):
  before = contents(copied)
  with pytest.raises(ConfigError, match=f'was made with other settings. What differs: .*{message}'):
    call(*flagged(folder, asked, copied, *more))
  assert contents(copied) == before


def test_other_problems_and_other_weights_are_refused(copied, folder, tmp_path):
  other = model_folder.write_lines(tmp_path / 'asked.jsonl', [*ASKED[:-1], ASKED[-1] | {'answer': '5'}])
  with pytest.raises(ConfigError, match='What differs: benchmarks.mine.digest: '):
    call(*flagged(folder, other, copied))
  asked = model_folder.write_lines(tmp_path / 'asked.jsonl', ASKED)
  trained = model_folder.copy(folder, tmp_path / 'trained')
  weights = bytearray((trained / 'model.safetensors').read_bytes())
  weights[-1] ^= 1
  (trained / 'model.safetensors').write_bytes(weights)
  with pytest.raises(ConfigError, match='What differs: model.weights: '):
    call(*flagged(trained, asked, copied))
  elsewhere = model_folder.copy(folder, tmp_path / 'elsewhere')
  assert call(*flagged(elsewhere, asked, copied))[0] == 0, 'the same model under another name'


def test_what_is_drawn_depends_on_the_problem_alone(whole, folder, asked, tmp_path, monkeypatch):
  """Not on how many problems there are, on other benchmarks, or on how many rows are drawn at a time."""
  other = model_folder.write_lines(tmp_path / 'other.jsonl', ASKED[:6])
  both, budgets, real = f'--benchmarks=other={other},mine={asked}', [], sitting.draw
  given = (f'--model={folder}', both, '--limit=6', '--rows=2', f'--output={tmp_path / "out"}', *SAMPLED)

  def counted(*args):
    budgets.append(args[2])
    if len(budgets) == 2:  # a batch is there and the next is not
      raise Killed
    return real(*args)

  monkeypatch.setattr(sitting, 'draw', counted)
  with pytest.raises(Killed):
    call(*given)
  call(*given)
  assert {budget.shape for budget in budgets} == {(6,), (12,)}  # all samples of two prompts, or of four
  assert sum(int((budget > 0).sum()) for budget in budgets if budget is not budgets[1]) == 36
  known = {(row['problem'], row['sample']): row['ids'] for row in rows(whole[0])}
  found = rows(tmp_path / 'out')
  assert len(found) == 18 and all(row['ids'] == known[row['problem'], row['sample']] for row in found)
  others = {row['problem']: row['ids'] for row in rows(tmp_path / 'out', 'other')}
  assert others['other/4'] != known['mine/4', 2], 'and the same problem elsewhere is another draw'


def test_one_command_at_a_time(folder, asked, tmp_path):
  output = tmp_path / 'out'
  with record.claimed(str(output), {}):
    with pytest.raises(ConfigError, match='--output=.*/out is being written by another command'):
      call(*flagged(folder, asked, output))
  assert not (output / 'mine').exists()


def test_a_full_disk_loses_nothing(whole, folder, asked, tmp_path):
  """A limit on the size of files acts like one; the samples before it stay."""
  output, limits = tmp_path / 'out', resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
  try:
    with pytest.raises(OSError) as caught:
      call(*flagged(folder, asked, output))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  said = entry.explain(caught.value)
  assert said.startswith('the disk is full: ') and said.endswith('the same command: it goes on from here.')
  path, budgets = output / 'mine' / 'samples.jsonl', []
  assert path.stat().st_size == 8192 and path.read_bytes()[-1:] != b'\n'
  there = {(r['problem'], r['sample']) for r in map(json.loads, path.read_bytes().split(b'\n')[:-1])}
  with pytest.MonkeyPatch.context() as patched:
    real = sitting.draw
    patched.setattr(sitting, 'draw', lambda *args: budgets.append(args[2]) or real(*args))
    assert call(*flagged(folder, asked, output))[0] == 0
  assert there and sum(int((b > 0).sum()) for b in budgets) == 33 - len(there)
  assert contents(output) == contents(whole[0])


def test_programs_are_judged_when_all_samples_of_a_batch_are_there(folder, tmp_path, monkeypatch):
  """And are safe before that."""
  task = {'prompt': 'def f():\n', 'entry_point': 'f', 'canonical_solution': '  pass\n', 'test': TEST}
  tasks = [{'task_id': f'HumanEval/{i}'} | task for i in range(6)]
  asked, calls = model_folder.write_lines(tmp_path / 'asked.jsonl', tasks), []
  given = (f'--model={folder}', f'--benchmarks=humaneval={asked}', f'--output={tmp_path / "out"}', *SAMPLED)

  def judged(programs, tasks, config=None):
    calls.append([task.id for task in tasks])
    if len(calls) == 3:
      raise Killed
    return {'base': Graded((Verdict.CORRECT,) * len(tasks))}

  @contextlib.contextmanager
  def progress(label, start):
    yield lambda done, values, rate, count: shown.append((len(calls), values))

  shown: list[tuple[int, dict[str, float]]] = []
  monkeypatch.setattr(sitting, 'progress', progress)
  monkeypatch.setattr(programs, 'judge', judged)
  with pytest.raises(Killed):
    call(*given)
  assert {len(values) for judged, values in shown if judged == 1} == {0}, 'what is not judged is not wrong'
  assert {values['accuracy'] for judged, values in shown if judged == 2} == {1.0}
  found = rows(tmp_path / 'out', 'humaneval')
  assert len(found) == 18 + 12 and sum(not row['verdicts'] for row in found) == 18, 'all drawn, 12 judged'
  monkeypatch.setattr(read, 'load', None)
  assert call(*given)[0] == 0
  ids = [[f'HumanEval/{i}' for i in part for _ in range(3)] for part in (range(4), range(4, 6))]
  first, *others = [sorted(part) for part in calls]
  assert len(first) == 1 and others == [ids[0], ids[1], first, ids[1]], 'the sandbox is tried by each command'
  found = rows(tmp_path / 'out', 'humaneval')
  assert len(found) == 18 and all(row['verdicts'] == {'base': 'correct'} for row in found)


MISTAKES = [
  (('--benchmarks=mine={asked}',), 'give either --model=FOLDER or --checkpoint=RUN'),
  (('--model={folder}', '--checkpoint={folder}'), 'give either --model'),
  (('--model=nowhere',), '--model=nowhere is no folder'),
  (('--checkpoint=nowhere',), '--checkpoint=nowhere has no config.json'),
  (('--checkpoint={folder}',), 'is no run of experiments.train'),
  (('--model={folder}', '--protocol=osd'), "--protocol=osd is unknown. Did you mean 'opsd'"),
  (('--model={folder}', '--benchmarks=aime42'), '--data is missing: where is aime42'),
  (('--model={folder}', '--benchmarks=aime42', '--data={empty}'), "'aime42' is unknown. Did you mean 'aime2"),
  (('--model={folder}', '--benchmarks=aime24', '--data={empty}'), 'has no AIME 2024: looked for'),
  (('--model={folder}', '--benchmarks=a={asked},a={asked}'), '--benchmarks names a more than once'),
  (('--model={folder}', '--benchmarks=a/b={asked}'), "'a/b' cannot be the name of a folder"),
  (
    ('--model={folder}', '--max_prompt_tokens=60'),
    r"'mine/.*' has \d+ tokens, but --max_prompt_tokens is 60 ",
  ),
  (
    ('--model={folder}', '--max_tokens=32768'),
    r'is made for 32768 positions .* lower --max_tokens to 32\d\d\d',
  ),
  (('--model={folder}', '--top_p=0'), '--top_p is 0.0; it must lie in'),
  (('--model={folder}', '--prompt=run'), '--prompt=run: --model=.* is no run; name a --checkpoint'),
  (('--model={folder}', '--rules=strikt'), "--rules is 'strikt', which is not a choice. Did you mean 'stri"),
  (('--model={folder}', '--rules=opsd,strict'), '--rules=opsd,strict names several; name one'),
  (('--model={folder}', '--prompt=mine'), '--prompt=mine is neither run nor protocol'),
  (('--model={folder}', '--rules=run'), '--rules=run: --model=.* is no run'),
  (('--model={folder}', '--grade_seconds=0'), 'grade.seconds is 0'),
  (('--model={bare}',), 'has no chat template, which the prompts of a protocol need'),
  (('--model={folder}', '--output={folder}'), '--output=.* holds .* and no settings.json'),
  (('--model={folder}', '--output={asked}'), '--output=.* cannot be written'),
  (('--model={folder}', '--output='), '--output is missing'),
]


@pytest.mark.parametrize('given, message', MISTAKES)
def test_mistakes_are_named_before_anything_is_loaded(folder, asked, tmp_path, monkeypatch, given, message):
  bare, empty = model_folder.copy(folder, tmp_path / 'bare'), tmp_path / 'empty'
  settings = json.loads((bare / 'tokenizer_config.json').read_text())
  (bare / 'tokenizer_config.json').write_text(json.dumps({'eos_token': settings['eos_token']}))
  empty.mkdir()
  monkeypatch.setattr(read, 'load', None)
  common = ('--benchmarks=mine={asked}', '--output={empty}/out', '--max_tokens=8')
  with pytest.raises(ConfigError, match=message) as caught:
    call(*(t.format(folder=folder, asked=asked, bare=bare, empty=empty) for t in (*common, *given)))
  assert '\n' not in str(caught.value) and not (empty / 'out').exists()


def test_every_protocol_can_be_asked(folder, asked, tmp_path, monkeypatch):
  def stopped(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(evaluate, '_ask', stopped)
  for name, protocol in protocols.PROTOCOLS.items():
    output = tmp_path / name
    few = ('--samples=1', '--max_tokens=4', '--limit=2', f'--protocol={name}')
    call(f'--model={folder}', f'--benchmarks=mine={asked}', f'--output={output}', *few)
    settings = json.loads((output / 'settings.json').read_text())
    assert settings['changed'] == [
      f'max_tokens: {protocol.sampling.max_tokens} -> 4',
      f'samples: {protocol.samples} -> 1',
    ]
    assert (settings['thinking'], settings['top_p']) == (protocol.thinking, protocol.sampling.top_p)


@pytest.mark.slow
def test_killed_for_real_it_ends_the_same(folder, tmp_path):
  """SIGKILL, as soon as a certain number of lines is there; the lock does not outlive the process."""
  asked = model_folder.write_lines(tmp_path / 'asked.jsonl', ASKED[1:5])
  outputs = {name: tmp_path / name for name in ('whole', 'killed')}
  slow = ('--samples=30', '--batch=1', '--every=1')  # many dispatches
  command = [sys.executable, '-m', 'experiments.evaluate']
  calls = {name: [*command, *flagged(folder, asked, path, *slow)] for name, path in outputs.items()}
  done = tiny.call(calls['whole'])
  assert done.returncode == 0, done.stderr
  path = outputs['killed'] / 'mine' / 'samples.jsonl'
  process = subprocess.Popen(
    calls['killed'], cwd=tiny.REPOSITORY, env=tiny.environment(), stderr=subprocess.DEVNULL
  )
  while process.poll() is None and not (path.exists() and path.read_bytes().count(b'\n') >= 60):
    time.sleep(0.001)
  process.kill()
  assert process.wait() == -signal.SIGKILL
  assert path.read_bytes().count(b'\n') < 240, 'two lines of each sample, before and after it is judged'
  done = tiny.call(calls['killed'])
  assert done.returncode == 0, done.stderr
  assert contents(outputs['killed']) == contents(outputs['whole'])


@pytest.mark.slow
@pytest.mark.data
def test_real_benchmarks(folder, data_root, tmp_path):
  names = {'aime24': {'opsd', 'strict'}, 'math500': {'opsd', 'strict'}, 'humaneval_plus': {'base', 'plus'}}
  given = ('--limit=2', '--samples=2', '--max_tokens=16', '--max_prompt_tokens=4000', '--protocol=renio')
  output = tmp_path / 'out'
  code, table, told = call(
    *(f'--model={folder}', f'--data={data_root}', f'--benchmarks={",".join(names)}', f'--output={output}'),
    *given,
  )
  assert code == 0 and 'Mathematical Association' in told and 'AIME 2024' in table
  results = json.loads((output / 'results.json').read_text())
  assert list(results['benchmarks']) == list(names)
  for name, rules in names.items():
    assert all(set(row['verdicts']) == rules and len(rows(output, name)) == 4 for row in rows(output, name))
  assert {row['verdicts']['plus'] for row in rows(output, 'humaneval_plus')} == {'unformatted'}
  assert results['settings']['prompt'].keys() == {'of', 'maths', 'programs'}


def test_the_command_line(folder):
  command = [sys.executable, '-m', 'experiments.evaluate']
  helped = tiny.call([*command, '--help'])
  for word in ('--protocol', 'goes on where an interrupted one stopped', '--benchmarks', '--temperature'):
    assert word in helped.stdout, word
  refused = tiny.call([*command, f'--model={folder}', '--output=nowhere/out', '--benchmarks=aime24'])
  assert refused.returncode == 2 and refused.stderr.startswith('error: --data is missing')
  assert refused.stderr.count('\n') == 1
