"""Whether two tokenizers mean the same by every id."""

import pytest

from opsd_jax.text.tokenizer import TokenizerConfig, difference, is_in, make_tokenizer


def named(alphabet):
  return make_tokenizer(TokenizerConfig(alphabet=alphabet))


@pytest.mark.parametrize(
  ('theirs', 'words'),
  [('abc', None), ('abd', "id 5 is 'd' instead of 'c'"), ('abcd', '7 ids instead of 6'), ('ab', '5 ids')],
)
def test_the_first_difference_is_told(theirs, words):
  found = difference(named('abc'), named(theirs))
  assert found is None if words is None else found.startswith(words)


def test_a_folder_with_a_tokenizer(tmp_path):
  assert not is_in(str(tmp_path))
  (tmp_path / 'tokenizer.json').write_text('{}')
  assert is_in(str(tmp_path))
