"""Flags that several commands have, each defined once: one process may load more than one command."""

from absl import flags

from opsd_jax.config import require

MODEL = flags.DEFINE_string(
  'model',
  None,
  "A model's folder, whose shape, weights and tokenizer are used; where an experiment is meant, also the "
  'name of a published size, whose shape is used. There it is short for --set=model=... and, for a folder, '
  'weights.path=... and tokenizer.path=...',
)
CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'Folder of a run, as --workdir of experiments.train.')
BASE = flags.DEFINE_string(
  'base', None, "Folder of the model that training began from; left out: the run's weights.path, if any."
)
STEP = flags.DEFINE_string('step', 'latest', 'Checkpoint to read: latest, best or a number of updates.')
OUTPUT = flags.DEFINE_string('output', None, 'What to write; the text above says how.')
DTYPE = flags.DEFINE_enum(
  'dtype', None, ['float32', 'bfloat16'], 'Of the weights; the text above says which if left out.'
)

# What a model is asked and how it answers. The commands' defaults differ, so that none stands here.
PROMPT = flags.DEFINE_multi_string('prompt', [], 'What is asked; the text above says how.')
THINKING = flags.DEFINE_bool('thinking', None, 'Whether to think first; left out: see above.')
SYSTEM = flags.DEFINE_string('system', None, "The system's turn.")
TEMPERATURE = flags.DEFINE_float('temperature', None, 'Divides the logits; 0 is greedy.')
TOP_P = flags.DEFINE_float('top_p', None, 'Draw from the likeliest tokens that hold this mass.')
TOP_K = flags.DEFINE_integer('top_k', None, 'Draw from the k likeliest tokens.')
MIN_P = flags.DEFINE_float('min_p', None, 'Draw from tokens this fraction as likely as the likeliest.')
MAX_TOKENS = flags.DEFINE_integer('max_tokens', None, 'Tokens of a completion, at most.')
MAX_PROMPT = flags.DEFINE_integer('max_prompt_tokens', None, 'A longer prompt is refused.', lower_bound=1)
SEED = flags.DEFINE_integer('seed', None, 'Of the random numbers.', lower_bound=0, upper_bound=2**32 - 1)
SAMPLES = flags.DEFINE_integer('samples', None, 'Completions of each prompt.', lower_bound=1)
BENCHMARKS = flags.DEFINE_list('benchmarks', [], 'Which benchmarks; the text above says which if left out.')
RULES = flags.DEFINE_list('rules', [], 'Rules of grading; the text above says which if left out.')
BATCH = flags.DEFINE_integer('batch', 8, 'Prompts that are read at a time.', lower_bound=1)
TEMPLATE = flags.DEFINE_string('chat_template', None, "A .jinja file in place of the model's own template.")
EOS = flags.DEFINE_list('eos_tokens', [], 'Tokens that end a completion, if not those of the folder.')
CONTROL = flags.DEFINE_bool(
  'control_tokens_in_data', False, 'Take control tokens that a prompt spells out for what they say.'
)


def one(flag: flags.FlagHolder) -> str | None:
  """The value of a list of which a command takes one; None if left out.

  Raises:
    ConfigError: it has several.
  """
  require(len(flag.value) <= 1, f'--{flag.name}={",".join(flag.value)} names several; name one.')
  return flag.value[0] if flag.value else None
