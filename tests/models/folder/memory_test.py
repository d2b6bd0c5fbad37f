"""Loading needs little memory beside the parameters, measured on a model of 3 GB in a process of its own."""

import json
import pathlib
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from opsd_jax.models.folder import tensors
from tests.experiments import tiny
from tests.models.folder import make

CONFIG = dict(
  model_type='llama',
  vocab_size=64000,
  hidden_size=2048,
  intermediate_size=8192,
  num_hidden_layers=22,
  num_attention_heads=16,
  num_key_value_heads=16,
  max_position_embeddings=64,
  tie_word_embeddings=True,
)
MEASURE = """
import json, sys, threading, time
import jax
jax.config.update('jax_num_cpu_devices', 8)
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import families, model
from opsd_jax.models.folder import read


def anonymous():
  with open('/proc/self/status') as file:
    return next(int(line.split()[1]) * 1024 for line in file if line.startswith('RssAnon'))


def watch():
  while not done.is_set():
    peak[0] = max(peak[0], anonymous())
    time.sleep(0.002)


mesh = make_mesh(MeshConfig(1, 4, 2))
spec = families.find(sys.argv[1])
model.abstract_params(spec, mesh)
jax.jit(lambda x: x + 1)(1).block_until_ready()
before, peak, done = anonymous(), [0], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
began = time.monotonic()
params = jax.block_until_ready(read.load(sys.argv[1], spec, mesh, 'bfloat16'))
seconds = time.monotonic() - began
done.set()
watcher.join()
size = sum(x.nbytes for x in jax.tree.leaves(params))
print(json.dumps(dict(size=size, above=peak[0] - before, before=before, seconds=seconds)))
"""


def write_large(folder: pathlib.Path) -> int:
  """Writes a model as three files, tensor by tensor; its size in bytes."""
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(CONFIG))
  width = CONFIG['hidden_size']
  shapes = {'model.embed_tokens.weight': (CONFIG['vocab_size'], width), 'model.norm.weight': (width,)}
  for layer in range(CONFIG['num_hidden_layers']):
    shapes |= {f'model.layers.{layer}.{n}': s for n, s in make.matrices(CONFIG).items()}
  some = np.random.default_rng(0).normal(size=2**16).astype(ml_dtypes.bfloat16)
  places = {name: f'model-{i * 3 // len(shapes)}.safetensors' for i, name in enumerate(shapes)}
  for file in sorted(set(places.values())):
    here = {name: shapes[name] for name in shapes if places[name] == file}
    heads = {name: ('BF16', shape, 2 * int(np.prod(shape))) for name, shape in here.items()}
    tensors.write_file(str(folder / file), heads, (np.resize(some, shape) for shape in here.values()))
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': places}))
  return sum(2 * int(np.prod(shape)) for shape in shapes.values())


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_peak_memory_of_loading(tmp_path):
  folder = tmp_path / 'model'
  try:
    size = write_large(folder)
    assert size >= 3e9
    done = subprocess.run(
      [sys.executable, '-c', MEASURE, str(folder)],
      cwd=tiny.REPOSITORY,
      env=tiny.environment() | {'JAX_NUM_CPU_DEVICES': '8'},
      text=True,
      capture_output=True,
      timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert size <= found['size'] <= 1.001 * size  # norm scales are float32
    assert found['above'] <= 1.15 * found['size'], found
  finally:
    for path in folder.iterdir():
      path.unlink()
