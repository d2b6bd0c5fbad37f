import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from opsd_jax.grade.programs import compare
from opsd_jax.grade.programs.values import Opaque

FLOATS = st.floats(-1e9, 1e9) | st.sampled_from([0.0, math.inf, -math.inf, math.nan])


@hypothesis.given(st.lists(st.tuples(FLOATS, st.floats(-1e-5, 1e-5)), min_size=1))
def test_floats_are_as_close_as_numpy_says(pairs):
  expected, found = [e for e, _ in pairs], [e + d for e, d in pairs]
  assert compare.close(found, expected, 0) == np.allclose(found, expected, rtol=1e-7, atol=1e-6)
  assert compare.close(found, expected, 1e-4) == np.allclose(found, expected, rtol=1e-7, atol=1e-4)


@pytest.mark.parametrize(
  ('found', 'expected', 'tolerance', 'same'),
  [
    (1, 1.0, 0, True),
    (True, 1, 0, True),
    ([1, 2], (1, 2), 0, False),
    (1000000001, 1000000000, 0, False),
    (1000000001, 1000000000, 1e-6, True),  # 1e-7 of it are 100
    (1, 1.0000001, 0, False),  # of another kind, and not equal
    ([1, 1.0000001], [1, 1.0], 0, False),  # not floats alone
    ([1, 1.0000001], [1, 1.0], 1e-6, True),
    ([[1.0]], [[1.0000001]], 1e-6, True),
    ([[1.0]], [[1.0, 1.0]], 1e-6, False),  # not stretched
    ('1.0', 1.0, 1e-6, False),
    ({'a': 1.0}, {'a': 1.0000001}, 1e-6, False),
    (complex(1, 1e-9), complex(1, 0), 1e-6, True),
    (None, None, 0, True),
    (Opaque(), None, 0, False),
  ],
)
def test_close(found, expected, tolerance, same):
  assert compare.agree('close', [], found, expected, tolerance) == same


@pytest.mark.parametrize(
  ('rule', 'arguments', 'found', 'expected', 'same'),
  [
    ('set', [], [2, 1, 1], (1, 2), True),
    ('set', [], [2], (1, 2), False),
    ('found', [], Opaque(), Opaque(), True),
    ('found', [], None, Opaque(), False),
    ('found', [], None, None, True),
    ('found', [], 'x', None, False),
    ('found', [], True, Opaque(), True),
    ('found', [], False, Opaque(), False),
    ('found', [], False, None, True),
    ('found', [], True, None, False),
    ('anything', [], 'x', 3, True),
    ('or_zero', [], 0, 7, True),
    ('boxed', [], (1, 2), [1, 2], True),
    ('boxed', [], (1, 2), [[1, 2]], True),
    ('boxed', [], [1, 2], [[1], [2]], False),
    ('boxed', [], [[3]], [3], False),
    ('or_zero', [], 6, 7, False),
    ('root', [[-6, 1, 1]], 2.0, -3.0, True),  # x² + x - 6 has two roots
    ('root', [[-6, 1, 1]], 2.1, -3.0, False),
    ('pyramid', [3, 4], 33, 33, True),
    ('pyramid', [3, 4], 35, 33, True),  # 9 + 6·√(1.5² + 4²) = 34.6
    ('pyramid', [3, 4], 34, 33, False),
    ('digits', [1, 2], 1, 1, True),
    ('digits', [23, 156], 1 + 3 + 3, 4, True),
    ('digits', [23, 156], 6, 4, False),
    ('json', [], ((1, 2), [3]), [[1, 2], [3]], True),
    ('json', [], (1, 3), [1, 2], False),
  ],
)
def test_rules(rule, arguments, found, expected, same):
  assert compare.agree(rule, arguments, found, expected, 1e-4) == same


def test_a_result_that_does_not_compare_is_an_exception():
  with pytest.raises(TypeError):
    compare.agree('set', [], 5, [5], 0)
  with pytest.raises(TypeError):
    compare.agree('root', [[1, 2]], None, -0.5, 0)


@pytest.mark.parametrize(
  ('found', 'expected', 'same'),
  [
    ('1 2\n', '1 2', True),
    (' 1 2 \n3\n\n', '1 2\n3', True),
    ('1.0 2', '1 2.00', True),
    ('1 2', '1 3', False),
    ('1\n2', '1 2', False),
    ('YES', 'Yes', False),
    ('', '', True),
    ('a 1.0', 'a 1', False),
  ],
)
def test_same_text(found, expected, same):
  assert compare.same_text(found, expected) == same


@pytest.mark.parametrize(
  ('found', 'expected', 'same'),
  [
    ('1\n', '1', True),
    (' 1 2\n\n', '1 2\n', True),
    ('1.0', '1', False),
    ('1  2', '1 2', False),
    ('1 \n2', '1\n2', False),
  ],
)
def test_exact_texts(found, expected, same):
  assert compare.exact_text(found, expected) == same
