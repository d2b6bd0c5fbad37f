"""Fields of a config.json, read strictly: what is neither asked for nor known to be harmless is refused."""

import math
from collections.abc import Mapping
from typing import Any

from opsd_jax.config import ConfigError, require

_REQUIRED = object()

# Fields that no forward pass of a decoder at inference depends on.
HARMLESS = frozenset(
  """
  _attn_implementation _attn_implementation_autoset attn_implementation _commit_hash _name_or_path
  transformers_version unsloth_fixed unsloth_version dtype torch_dtype initializer_range
  attention_dropout hidden_dropout pretraining_tp use_cache cache_implementation max_position_embeddings
  bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id forced_bos_token_id
  forced_eos_token_id tokenizer_class prefix task_specific_params finetuning_task id2label label2id
  num_labels problem_type return_dict output_hidden_states output_attentions torchscript use_bfloat16
  tf_legacy_loss chunk_size_feed_forward max_length min_length do_sample early_stopping num_beams
  num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
  no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
  return_dict_in_generate remove_invalid_values exponential_decay_length_penalty suppress_tokens
  begin_suppress_tokens
  """.split()
)
# Every config has had these; they matter where they are set.
_OFF = ('is_decoder', 'is_encoder_decoder', 'add_cross_attention', 'tie_encoder_decoder', 'pruned_heads')


class Fields:
  """The fields of one object; each is marked as read by the call that reads it.

  A field that is null counts as absent, unless it is asked for with `default`.
  """

  def __init__(self, values: Mapping[str, Any], where: str):
    self.where = where
    self._values = dict(values)
    self._read: set[str] = set()

  def __contains__(self, name: str) -> bool:
    return name in self._values

  def get(self, name: str, default: Any = None) -> Any:
    """The value as it is, or `default` where the field is absent."""
    self._read.add(name)
    return self._values.get(name, default)

  def number(self, name: str, default: Any = _REQUIRED) -> float:
    """A finite number; null counts as absent."""
    value = self._present(name, default)
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    self._need(right, name, value, 'a number')
    return value

  def optional_number(self, name: str, default: float | None) -> float | None:
    """A number, or None where the field is null; `default` where it is absent."""
    value = self.get(name, default)
    return None if value is None else self.number(name, default)

  def integer(self, name: str, default: Any = _REQUIRED) -> int:
    """A whole number above 0."""
    value = self.number(name, default)
    self._need(value == int(value) and value > 0, name, value, 'a whole number above 0')
    return int(value)

  def flag(self, name: str, default: bool) -> bool:
    """True or false."""
    value = self._present(name, default)
    self._need(isinstance(value, bool), name, value, 'true or false')
    return value

  def mapping(self, name: str) -> dict[str, Any]:
    """An object without its null fields; empty where it is absent."""
    value = self._present(name, {})
    self._need(isinstance(value, dict), name, value, 'an object')
    return {k: v for k, v in value.items() if v is not None}

  def fixed(self, name: str, allowed: Any) -> None:
    """Refuses any value but the one that we compute."""
    value = self._present(name, allowed)
    require(
      value == allowed,
      f'{self.where}: {name} is {value!r}, which we do not compute (only {allowed!r}); use another model.',
    )

  def finish(self) -> None:
    """Refuses the fields that nobody read: each might change what the model computes."""
    for name in _OFF:
      value = self.get(name)
      require(not value, f'{self.where}: {name} is {value!r}, which we do not compute; use another model.')
    left = [k for k, v in self._values.items() if v is not None and k not in self._read | HARMLESS]
    require(
      not left,
      f'{self.where}: unknown fields {", ".join(f"{k} = {self._values[k]!r}" for k in sorted(left))}. They '
      'may change what the model computes; use another model, or remove them if they do not.',
    )

  def _present(self, name: str, default: Any) -> Any:
    value = self.get(name)
    if value is not None:
      return value
    if default is _REQUIRED:
      raise ConfigError(f'{self.where} has no field {name!r}; get the file again.')
    return default

  def _need(self, right: bool, name: str, value: Any, wanted: str) -> None:
    require(right, f'{self.where}: {name} is {value!r}, which is not {wanted}; get the file again.')
