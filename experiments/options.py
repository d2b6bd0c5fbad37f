"""Flags that several commands have, each defined once: one process may load more than one command."""

from absl import flags

MODEL = flags.DEFINE_string(
  'model',
  None,
  "A model's folder, whose shape, weights and tokenizer are used; where an experiment is meant, also the "
  'name of a published size, whose shape is used. There it is short for --set=model=... and, for a folder, '
  'weights.path=... and tokenizer.path=...',
)
OUTPUT = flags.DEFINE_string('output', None, 'What to write; the text above says how.')
DTYPE = flags.DEFINE_enum(
  'dtype', None, ['float32', 'bfloat16'], 'Of the weights; the text above says which if left out.'
)
