"""What every test runs under: eight CPU devices, strict shapes, repeatable examples, programs compiled once.

The environment is set before JAX is first imported; a machine's accelerator is used only when
JAX_PLATFORMS names it.
"""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('MPLBACKEND', 'Agg')

import atexit  # noqa: E402
import importlib.util  # noqa: E402
import pathlib  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import tempfile  # noqa: E402

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

hypothesis.settings.register_profile('repeatable', derandomize=True, deadline=None)
hypothesis.settings.load_profile('repeatable')

# What one test compiled, the next one loads: also in the other processes of a run, which inherit the name.
if 'OPSD_TEST_COMPILED' not in os.environ:
  os.environ['OPSD_TEST_COMPILED'] = tempfile.mkdtemp(prefix='opsd_compiled_')
  atexit.register(shutil.rmtree, os.environ['OPSD_TEST_COMPILED'], ignore_errors=True)

# A shell starts what it runs in the background with the interrupt key ignored, and commands that the tests
# start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
  """Skips the tests marked `reference` where the PyTorch side is not installed."""
  missing = [name for name in ('torch', 'transformers') if importlib.util.find_spec(name) is None]
  skip = pytest.mark.skip(reason=f'needs {" and ".join(missing)}: make test-reference')
  for item in items:
    if missing and not os.environ.get('OPSD_REFERENCE_PYTHON') and item.get_closest_marker('reference'):
      item.add_marker(skip)


@pytest.fixture(scope='module', autouse=True)
def _forgotten():
  """Programs of a file are of no use to the next one, and thousands of them fill the memory."""
  yield
  jax.clear_caches()


@pytest.fixture(scope='session')
def data_root() -> pathlib.Path:
  """The folder of data sets and tokenizers that are not part of the repository, else skips."""
  named = os.environ.get('OPSD_DATA')
  folder = pathlib.Path(named) if named else REPOSITORY.parent / 'shared' / 'data'
  if not folder.is_dir():
    pytest.skip(f'no data at {folder}: set OPSD_DATA to the folder with gsm8k, tokenizers, ...')
  return folder
