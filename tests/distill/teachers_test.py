"""Whose weights score: frozen, averaged or live, against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax.config import ConfigError
from opsd_jax.distill import teachers
from opsd_jax.distill.config import TeacherConfig, validate_teacher


def tree(*values):
  return {'a': jnp.array(values, jnp.float32), 'b': {'c': jnp.array([[values[0] * 10.0]])}}


INITIAL, STUDENT = tree(1.0, 2.0), tree(3.0, 4.0)


def assert_equal(found, wanted):
  np.testing.assert_array_equal(found['a'], wanted['a'])
  np.testing.assert_array_equal(found['b']['c'], wanted['b']['c'])


def test_a_frozen_teacher_is_the_initial_weights_and_is_not_carried():
  config = TeacherConfig('frozen')
  assert teachers.init(config, INITIAL) is None
  assert teachers.update(config, None, STUDENT) is None
  assert teachers.params_for(config, INITIAL, None, STUDENT) is INITIAL


def test_a_live_teacher_is_the_student():
  config = TeacherConfig('live')
  assert teachers.init(config, INITIAL) is None
  assert teachers.update(config, None, STUDENT) is None
  assert teachers.params_for(config, INITIAL, None, STUDENT) is STUDENT


def test_an_average_is_there_before_the_first_update():
  """Regression: published code creates it after the first step, which has a live teacher."""
  config = TeacherConfig('ema')
  average = teachers.init(config, INITIAL)
  assert_equal(average, INITIAL)
  assert_equal(teachers.params_for(config, INITIAL, average, STUDENT), INITIAL)


def test_an_average_does_not_share_buffers_with_the_student():
  # Steps donate the student; an alias would be donated twice.
  average = teachers.init(TeacherConfig('ema'), INITIAL)
  assert average['a'] is not INITIAL['a']
  assert average['a'].unsafe_buffer_pointer() != INITIAL['a'].unsafe_buffer_pointer()


@pytest.mark.parametrize('decay', [0.0, 0.5, 0.9, 0.999])
def test_the_average_after_three_updates(decay):
  config = TeacherConfig('ema', ema_decay=decay)
  students = [np.array([3.0, -1.0]), np.array([0.5, 8.0]), np.array([-2.0, 2.0])]
  average, wanted = teachers.init(config, INITIAL), np.array([1.0, 2.0])
  for student in students:
    average = teachers.update(config, average, tree(*student))
    wanted = decay * wanted + (1 - decay) * student
  np.testing.assert_allclose(average['a'], wanted, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(average['b']['c'], [[10 * wanted[0]]], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
  ('config', 'words'),
  [
    (TeacherConfig('emaa'), "teacher.kind is 'emaa'.*'ema'"),
    (TeacherConfig('ema', ema_decay=1.0), 'teacher.ema_decay is 1.0'),
    (TeacherConfig('ema', ema_decay=-0.1), 'teacher.ema_decay is -0.1'),
  ],
)
def test_a_teacher_that_cannot_be_kept(config, words):
  with pytest.raises(ConfigError, match=words):
    validate_teacher(config)
