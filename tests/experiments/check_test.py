"""The check shows what a user must see, and warns of what is probably a mistake."""

import pytest

from tests.experiments import tiny


def check(*settings):
  return tiny.call(tiny.command('check', None, (*tiny.ALONE, *settings), '--problems=1'))


def test_shows_prompts_masks_gain_and_memory():
  done = check()
  for text in (
    'student prompt',
    'teacher prompt',
    'ids (11 of 12)',
    'ends at        2 <eos>',
    '35 of 40 positions',
    'nats a token (random initial weights)',
    'Adam moments',
    'rollouts: our own sampler',
  ):
    assert text in done.stdout, (text, done.stdout, done.stderr)


@pytest.mark.parametrize(
  'settings, warning',
  [
    (['views.teacher={problem}:'], 'zero signal: both views'),
    (
      ['views.teacher={problem}|{reference}'],
      'template mismatch: 64 of 64 teacher prompts end in another token',
    ),
    (['views.student={reference}:'], 'leak: 64 of 64 student prompts hold the solution'),
    (['rollout.sampling.max_tokens=20', 'cold_start.updates=0'], 'budget cuts: 64 of 64 reference solutions'),
  ],
)
def test_warnings(settings, warning):
  done = check(*settings)
  assert done.returncode == 3 and warning in done.stderr, done.stderr


def test_a_server_that_is_not_there_is_an_error():
  done = check('rollout.engine.url=http://127.0.0.1:9')  # a port that nothing listens on
  assert done.returncode == 2 and 'where no server answers' in done.stderr, done.stderr
  assert 'student prompt' not in done.stdout
