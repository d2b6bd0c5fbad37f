"""Data sets of mathematics and of multiple choice that have a split to test on."""

import dataclasses

from opsd_jax.data.config import FieldsConfig
from opsd_jax.evaluate.benchmark import (
  BOXED,
  MATHS,
  PLAIN,
  QUESTION,
  SOLVED,
  TEST,
  TRAIN,
  VERL,
  Benchmark,
  Schema,
  plain,
)

SETS = (
  Benchmark(
    'math500',
    'MATH-500',
    'maths',
    500,
    (
      plain('problem', 'answer', solution='solution', id='unique_id'),
      dataclasses.replace(VERL, needs=(*VERL.needs, 'id'), fields=dataclasses.replace(VERL.fields, id='id')),
      *MATHS,
    ),
    ('math500', 'MATH-500', 'math_500'),
    ('test_with_solution.jsonl', 'test.jsonl', 'val_test.parquet', *TEST[1:]),
    ('HuggingFaceH4/MATH-500', 'math-ai/math500'),
    'MATH: MIT; the choice of 500 (prm800k): MIT',
    {
      'a239272930e5202bf1d5275f7fa475a56687c775a61f1354a6d3371bf9dd7a94': 'EffOPD Analysis/data/math',
      '2e4c43a3d52175a773816f99f327d3ed5e3d15af6f479d87196a702cdb4f5411': 'OPD datasets/test_data/MATH-500',
      '966193d8d22e279e0055016566f0879b929748c29cba018b5db52981a8d88cfa': 'OPD scripts/val/data/MATH-500',
    },
    {
      '2e4c43a3d52175a773816f99f327d3ed5e3d15af6f479d87196a702cdb4f5411': (
        'every problem ends with an instruction to reason and to box: the prompt says it twice'
      )
    },
    (
      r'three answers hold an escaped dollar sign (\$36): the rules of OPSD cannot score them, so that their '
      'best is 497 of 500',
    ),
  ),
  Benchmark(
    'gsm8k',
    'GSM8K',
    'maths',
    1319,
    (Schema('openai', ('question', 'answer'), fields=FieldsConfig.named('gsm8k')),),
    ('gsm8k', 'GSM8K'),
    (*TEST, 'main/test-*.parquet'),
    ('openai/gsm8k',),
    'MIT',
    {'3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14': 'grade-school-math test.jsonl'},
  ),
  Benchmark(
    'svamp',
    'SVAMP',
    'maths',
    1000,
    (
      Schema(
        'SVAMP',
        ('Body', 'Question', 'Answer', 'ID'),
        'svamp',
        FieldsConfig(answer='Answer', solution=None, id='ID'),
      ),
    ),
    ('svamp', 'SVAMP'),
    TEST,
    ('ChilleD/SVAMP',),
    'MIT',
    {'d0826ff1264f3860e46fc4e71db9e31d2d188960db87090e22677f9493e67a0d': 'Qwen2.5-Math data/svamp'},
    remarks=(
      'the copy of Qwen2.5-Math has all 1,000 problems; the test split of ChilleD/SVAMP has 300 of them',
    ),
  ),
  Benchmark(
    'minerva',
    'Minerva Math',
    'maths',
    272,
    (SOLVED, BOXED, PLAIN, QUESTION, VERL),
    ('minerva_math', 'minerva', 'Minerva'),
    TEST,
    ('math-ai/minervamath',),
    'problems of MIT OpenCourseWare: CC-BY-NC-SA, not for commercial use; copies carry MIT',
    aliases=('minerva_math', 'minervamath'),
  ),
  Benchmark(
    'olympiadbench',
    'OlympiadBench',
    'maths',
    674,
    (Schema('OlympiadBench', ('question', 'final_answer'), 'olympiad'), *MATHS),
    ('olympiadbench', 'OlympiadBench', 'olympiad_bench'),
    (*TEST, 'OlympiadBench/OE_TO_maths_en_COMP/*.parquet', 'OE_TO_maths_en_COMP/train/*.parquet', *TRAIN),
    ('Hothan/OlympiadBench', 'math-ai/olympiadbench'),
    'Apache-2.0',
    remarks=(
      'open answers in text, mathematics, English; theorems to prove, pictures and physics are left out',
      'copies have 674 or 675 problems; units of answers are not asked for',
    ),
  ),
  Benchmark(
    'gpqa',
    'GPQA Diamond',
    'choice',
    198,
    (
      Schema(
        'GPQA',
        ('Question', 'Correct Answer', 'Incorrect Answer 1', 'Incorrect Answer 2', 'Incorrect Answer 3'),
        'choice',
      ),
      Schema('question, choices, answer_index', ('question', 'choices', 'answer_index'), 'options'),
    ),
    ('gpqa', 'gpqa_diamond', 'GPQA'),
    (
      'gpqa_diamond.csv',
      'gpqa_diamond.jsonl',
      'gpqa_diamond.parquet',
      'gpqa_diamond/*.parquet',
      *TEST,
      *TRAIN,
    ),
    ('Idavidrein/gpqa',),
    'CC-BY-4.0; its authors ask that no question is published in plain text',
    remarks=('the order of the options is drawn from the id of the problem, the same in every run',),
    aliases=('gpqa_diamond',),
  ),
)
