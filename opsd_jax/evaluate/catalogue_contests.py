"""Contests of mathematics: all of their problems are the test, whatever a file calls the split."""

from opsd_jax.evaluate.benchmark import MATHS, TEST, TRAIN, Benchmark

_MAA = '(c) Mathematical Association of America; licences of copies are those of whoever copied'
_ARENA = 'collected by MathArena under CC-BY-NC-SA-4.0: not for commercial use'


def _contest(name: str, title: str, expected: int, hub: tuple[str, ...], licence: str, **more) -> Benchmark:
  """A contest: all of its problems are the test, whatever the split is called."""
  more = {'folders': (name,), 'names': (*TEST, *TRAIN)} | more
  return Benchmark(name, title, 'maths', expected, MATHS, hub=hub, licence=licence, **more)


CONTESTS = (
  _contest(
    'aime24',
    'AIME 2024',
    30,
    ('HuggingFaceH4/aime_2024', 'math-ai/aime24', 'Maxwell-Jia/AIME_2024'),
    _MAA,
    folders=('aime24', 'AIME24', 'aime_2024'),
    names=('test.jsonl', 'test_qwen25math.jsonl', *TEST[1:], *TRAIN),
    known={
      '1c1004689dbaec0bd43b71f7083cabffefc27716783e19235947dc355031a95c': 'G-OPD data/aime24',
      'af2b8bd2aa911b6333ad0df32f3ca05c7ae8ed10f1731f4372c8ae26990bf7ac': 'Qwen2.5-Math data/aime24',
    },
    integers=True,
    remarks=('some copies write an answer with leading zeros (025); they are left out here',),
  ),
  _contest(
    'aime25',
    'AIME 2025',
    30,
    ('yentinglin/aime_2025', 'math-ai/aime25', 'MathArena/aime_2025', 'opencompass/AIME2025'),
    _MAA,
    folders=('aime25', 'AIME25', 'aime_2025'),
    names=(*TEST, *TRAIN, 'aime2025-I*.jsonl'),
    known={
      'b4e273c02d3e7fe1b74b59eae768fc8230bfb0f79539890cb56f4361caac0331': 'G-OPD data/aime25',
      '9d2333e1dc8831284747dfa62b58d8b6a84a94090ee108d1dd101f8d20a38593': 'OPD scripts/val/data/AIME25',
    },
    integers=True,
  ),
  _contest(
    'aime26',
    'AIME 2026',
    30,
    ('MathArena/aime_2026',),
    _MAA,
    folders=('aime26', 'AIME26', 'aime_2026'),
    integers=True,
  ),
  _contest(
    'amc23',
    'AMC 2023',
    40,
    ('math-ai/amc23',),
    _MAA,
    folders=('amc23', 'AMC23'),
    known={
      '43707e1ca784602d8479de24ee8ce36609dbebc46dd152b0b12a46611aa898a4': 'Qwen2.5-Math data/amc23',
      '01191828e1fe738a2d19c3379213a6e5c92b425e1f86d67323e7b8613efa5678': 'OPD scripts/val/data/AMC23',
    },
    remarks=(
      'the usual copies have 40 problems; Rethinking OPD measures 83 during training and 40 afterwards: the '
      'two numbers are not comparable',
      '24 of the 40 problems stand in DAPO-Math-17k',
    ),
  ),
  _contest(
    'hmmt25',
    'HMMT February 2025',
    30,
    ('MathArena/hmmt_feb_2025',),
    f'(c) HMMT; {_ARENA}',
    folders=('hmmt25_feb', 'hmmt25', 'HMMT25', 'hmmt_feb_2025'),
    known={
      '86825dc3a44cf9fd5fd62c5d6a4ab4afeb8feba1ae47ded20eea5663ec733524': 'G-OPD data/hmmt25_feb',
      'ccca64d248b89dc0765e40b893fe4ebeab242226a4336027d95d256886a3d5f2': 'OPD scripts/val/data/HMMT25',
    },
    aliases=('hmmt25_feb',),
  ),
  _contest(
    'hmmt25_nov',
    'HMMT November 2025',
    30,
    ('MathArena/hmmt_nov_2025',),
    f'(c) HMMT; {_ARENA}',
    folders=('hmmt25_nov', 'hmmt_nov_2025'),
  ),
  _contest(
    'brumo25',
    'BRUMO 2025',
    30,
    ('MathArena/brumo_2025',),
    f'(c) Brown University Math Olympiad; {_ARENA}',
    folders=('brumo25', 'BRUMO25', 'brumo_2025'),
  ),
  _contest(
    'cmimc25',
    'CMIMC 2025',
    40,
    ('MathArena/cmimc_2025',),
    f'(c) CMIMC; {_ARENA}',
    folders=('cmimc25', 'CMIMC25', 'cmimc_2025'),
  ),
)
