"""Named wordings: the presets, files of one's own, and what is wrong with a file."""

import pytest

from opsd_jax import config as configs
from opsd_jax.config import ConfigError
from opsd_jax.distill import wording
from opsd_jax.distill.config import ViewsConfig
from opsd_jax.experiment import Experiment

MINE = """
chat = false
[student]
text = 'Q {problem}'
[teacher]
text = '''
Q {problem}
A {solution}'''
opening = '<think>'
"""


@pytest.mark.parametrize('name', wording.presets())
def test_a_preset_tells_the_solution_to_the_teacher_alone(name):
  views = ViewsConfig().named(name)
  assert views.chat and '{problem}' in views.student and '{problem}' in views.teacher
  assert '{solution}' in views.teacher and '{solution}' not in views.student
  assert '{answer}' not in views.teacher + views.student


def test_the_releases_differ_in_their_switches_for_thinking():
  new, old = ViewsConfig().named('opsd'), ViewsConfig().named('opsd_2026_01')
  assert (new.student_thinking, new.teacher_thinking) == (False, True)
  assert (old.student_thinking, old.teacher_thinking) == (None, None)
  assert new.student == old.student and new.teacher != old.teacher


def test_the_teacher_of_the_new_release_reads_the_parts_in_order():
  text = ViewsConfig().named('opsd').teacher
  parts = ['Problem: {problem}', 'Begin of', '{solution}', 'End of', 'Do not copy', r'\boxed{{}}']
  places = [text.index(part) for part in parts]
  assert places == sorted(places)


def test_a_name_sets_the_wording_and_keeps_the_widths():
  experiment = configs.override(
    Experiment(name='x'), ['views.teacher_tokens=99', 'views=opsd', 'views.teacher={problem}']
  )
  assert experiment.views.teacher_tokens == 99 and experiment.views.student_thinking is False
  assert experiment.views.teacher == '{problem}', 'what comes later changes a part of the wording'
  assert experiment.views.student == ViewsConfig().named('opsd').student


def test_a_file_of_ones_own(tmp_path):
  (tmp_path / 'mine.toml').write_text(MINE)
  views = ViewsConfig(teacher_thinking=True).named(str(tmp_path / 'mine.toml'))
  assert views == ViewsConfig('Q {problem}', 'Q {problem}\nA {solution}', teacher_opening='<think>')


def test_a_file_of_ones_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'mine.toml').write_text(MINE)
  assert wording.load('~/mine.toml') == wording.load(str(tmp_path / 'mine.toml'))


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ("[student]\ntext = 'a'", r'has no teacher.text; write what the teacher sees under \[teacher\]'),
    ("[teacher]\ntext = 'a'", 'has no student.text'),
    (MINE + "ending = 'x'", "teacher.ending, which is unknown.*Did you mean 'opening'"),
    ("chta = true\n[student]\ntext='a'", "has chta, which is unknown. Did you mean 'chat'"),
    ('[student]\ntext = 3', 'student.text is 3; it must be a text'),
    ("[student]\ntext = 'a'\nthinking = 'no'", "student.thinking is 'no'; it must be true or false"),
    ("student = 'a'", "student is 'a'; it must be a table"),
    ('[student', 'which is not TOML'),
  ],
)
def test_a_file_that_holds_no_wording(tmp_path, content, message):
  (tmp_path / 'mine.toml').write_text(content)
  with pytest.raises(ConfigError, match=message):
    ViewsConfig().named(str(tmp_path / 'mine.toml'))


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('opds', "views is 'opds', no preset and no .toml file. Did you mean 'opsd'"),
    ('absent.toml', "views is 'absent.toml', which cannot be read: No such file"),
  ],
)
def test_no_such_wording(name, message):
  with pytest.raises(ConfigError, match=message):
    configs.override(Experiment(name='x'), [f'views={name}'])
