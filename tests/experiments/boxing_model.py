r"""A model made by hand that answers `...\boxed{7}`: its digit depends on the prompt, its length on chance.

A token's embedding says which state it puts the answer into, the head which tokens follow in that state,
and the one attention layer mixes the prompt's tokens into the choice of the digit. So verdicts differ and
rows end at different times without any training.
"""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np

from opsd_jax import mesh as meshes
from opsd_jax.models import model
from opsd_jax.models.folder import write
from opsd_jax.models.spec import ModelSpec
from opsd_jax.text.tokenizer import Message, Tokenizer, TokenizerConfig, make_tokenizer
from tests.experiments import model_folder

SPEC = dataclasses.replace(model_folder.SPEC, num_layers=1, tie_embeddings=False)
SURE, STATES = 10.0, 16  # weight of what follows; the first dimensions of an embedding, one a state


def write_model(folder: pathlib.Path, texts: pathlib.Path, spec: ModelSpec = SPEC) -> pathlib.Path:
  """A folder with the weights and the tokenizer of `texts`, whose digits are tokens of their own."""
  tokenizer = make_tokenizer(TokenizerConfig(path=str(texts)))
  mesh = meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1])
  params = jax.tree.map(lambda x: np.array(x), model.init_params(spec, jax.random.key(0), mesh))
  layers = params['layers']
  layers['attention']['out'][..., :STATES] = 0  # the prompt decides on the digit, and on nothing else
  for name in ('query_norm', 'key_norm'):
    layers['attention'][name]['scale'] *= 2  # few tokens of the prompt each, or all prompts would be alike
  layers['mlp']['down'][:] = 0
  params['embedding'], params['head'] = _tables(tokenizer, spec)
  write.save(folder, spec, jax.device_put(params, mesh.devices.flat[0]))
  for file in texts.iterdir():
    shutil.copyfile(file, folder / file.name)
  return folder


def _tables(tokenizer: Tokenizer, spec: ModelSpec) -> tuple[np.ndarray, np.ndarray]:
  """Embedding and head [V, D]: state i is followed by the tokens of state i + 1."""
  rng, steps = np.random.default_rng(0), _steps(tokenizer)
  embedding = rng.normal(size=(spec.vocab_size, spec.embed_dim)).astype(np.float32)
  embedding[:, :STATES] = 0
  head = np.zeros_like(embedding)
  for state, tokens in enumerate(steps):
    embedding[tokens] = 0
    embedding[tokens, state] = 1
    if state:
      head[tokens, state - 1] = SURE
  filler, first = steps[1], steps[2]
  head[filler, 1] = SURE - 0.02  # it may repeat itself, but is not the likeliest to
  head[first, 1] = SURE
  digits = steps[-3]
  head[digits, STATES:] = rng.normal(size=(len(digits), spec.embed_dim - STATES))
  return embedding, head


def _steps(tokenizer: Tokenizer) -> list[list[int]]:
  """The tokens of every state, from the ends of prompts to that of the completion."""
  prompts = [
    tokenizer.encode_template(tokenizer.chat([Message('user', 'a')], thinking=thinking))
    for thinking in (None, True, False)
  ]
  begin = [[i] for i in tokenizer.encode('\\boxed{')]
  digits = [i for digit in range(10) for i in tokenizer.encode(str(digit))]
  last = sorted({ids[-1] for ids in prompts})
  return [last, tokenizer.encode('.'), *begin, digits, tokenizer.encode('}'), [tokenizer.eos_ids[0]]]
