"""Known answers of the mathematics benchmarks, from the folder of data."""

import json

FILES = {
  'aime24': ('aime24/test.jsonl', 'answer'),
  'aime24 with solutions': ('aime24/test_qwen25math.jsonl', 'answer'),
  'aime25': ('aime25/test.jsonl', 'answer'),
  'amc23': ('amc23/test.jsonl', 'answer'),
  'hmmt25': ('hmmt25_feb/test.jsonl', 'answer'),
  'math500': ('math500/test_with_solution.jsonl', 'answer'),
  'gsm8k': ('gsm8k/test.jsonl', 'answer'),
  'gsm8k train': ('gsm8k/train.jsonl', 'answer'),
  'svamp': ('svamp/test.jsonl', 'Answer'),
  'dapo': ('dapo_math_17k/train.parquet', 'reward_model'),
}


def golds(root, name):
  """As text; GSM8K's stand after the last ####."""
  path, field = FILES[name]
  if path.endswith('.parquet'):
    import pyarrow.parquet

    column = pyarrow.parquet.read_table(root / path, columns=[field])[field].to_pylist()
    return [str(row['ground_truth']) for row in column]
  rows = (root / path).read_text(encoding='utf-8').splitlines()
  return [str(json.loads(row)[field]).split('####')[-1].strip() for row in rows]
