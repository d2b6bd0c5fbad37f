"""The safetensors format: a header with every tensor's place, then the bytes.

Read lazily, and written as a stream, so that no file is ever held in memory.
"""

import dataclasses
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np

from opsd_jax.config import ConfigError, require

# Those that a model's weights may have. Others are known to exist, and refused where they are asked for.
FLOATS = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in FLOATS.items()}
_LONGEST_HEADER = 100 * 2**20  # the format's own limit


@dataclasses.dataclass(frozen=True)
class Stored:
  """A tensor in a file.

  Attributes:
    path: of the file.
    name: of the tensor.
    kind: its type, as the format calls it.
    shape: its dimensions.
    start: of its bytes in the file.
    size: how many they are.
  """

  path: str
  name: str
  kind: str
  shape: tuple[int, ...]
  start: int
  size: int

  def view(self) -> np.ndarray:
    """The tensor as a map of the file: only what is looked at is read."""
    require(
      self.kind in FLOATS,
      f'{self.path}: tensor {self.name} is of type {self.kind}, expected one of {", ".join(FLOATS)}; use '
      'weights that are not quantised.',
    )
    return np.memmap(self.path, FLOATS[self.kind], 'r', self.start, self.shape)

  def bytes(self) -> np.ndarray:
    """The tensor's bytes, whatever its type."""
    return np.memmap(self.path, np.uint8, 'r', self.start, (self.size,))


def read_header(path: str) -> dict[str, Stored]:
  """Every tensor of a file, checked against the file's size.

  Raises:
    ConfigError: the file is missing, is no safetensors file, or is cut short.
  """
  try:
    with open(path, 'rb') as file:
      size = os.fstat(file.fileno()).st_size
      head, first = _header(path, file, size)
  except OSError as error:
    raise ConfigError(f'{path} cannot be read: {error.strerror or error}; get the file again.') from error
  head.pop('__metadata__', None)
  found = {name: _stored(path, name, entry, first) for name, entry in head.items()}
  end = max((t.start + t.size for t in found.values()), default=first)
  fault = 'cut short' if end > size else 'too long'
  require(
    end == size, f'{path} has {size} bytes, expected {end} by its header: it is {fault}; get the file again.'
  )
  return found


def _header(path: str, file: IO[bytes], size: int) -> tuple[dict[str, Any], int]:
  """The header's object and where the bytes of tensors begin."""
  raw = file.read(8)
  require(
    not raw.startswith(b'version '),
    f'{path} is a Git LFS pointer and not the file itself; fetch it with `git lfs pull`.',
  )
  length = struct.unpack('<Q', raw)[0] if len(raw) == 8 else size
  require(
    8 + length <= size and length <= _LONGEST_HEADER,
    f'{path} has {size} bytes, which is less than its header; it is cut short, or no safetensors file. '
    'Get the file again.',
  )
  try:
    head = json.loads(file.read(length))
  except ValueError as error:
    raise ConfigError(f'{path} has a broken header ({error}); get the file again.') from error
  require(isinstance(head, dict), f'{path} has a header that is no object; get the file again.')
  return head, 8 + length


def _stored(path: str, name: str, entry: Any, first: int) -> Stored:
  try:
    start, end = (int(offset) for offset in entry['data_offsets'])
    found = Stored(
      path, name, str(entry['dtype']), tuple(map(int, entry['shape'])), first + start, end - start
    )
  except (KeyError, TypeError, ValueError) as error:
    raise ConfigError(f'{path}: the header of tensor {name} is broken; get the file again.') from error
  width = FLOATS[found.kind].itemsize if found.kind in FLOATS else None
  wanted = found.size if width is None else math.prod(found.shape) * width
  require(
    0 <= start <= end and found.size == wanted,
    f'{path}: tensor {name} of type {found.kind} and shape {found.shape} has {found.size} bytes, expected '
    f'{wanted}; get the file again.',
  )
  return found


def write_file(path: str, heads: Mapping[str, tuple[str, tuple[int, ...], int]], data: Iterable[Any]) -> None:
  """Writes a file as its tensors come; no more than one of them is held.

  Args:
    path: of the file.
    heads: type, shape and number of bytes of each tensor, by name, in order.
    data: the tensors, arrays in the same order.

  Raises:
    ValueError: a tensor is not of the size that was announced.
  """
  head: dict[str, Any] = {'__metadata__': {'format': 'pt'}}  # without it, older readers refuse the file
  start = 0
  for name, (kind, shape, size) in heads.items():
    head[name] = {'dtype': kind, 'shape': list(shape), 'data_offsets': [start, start + size]}
    start += size
  text = json.dumps(head, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  with open(path, 'wb') as file:
    file.write(struct.pack('<Q', len(text)) + text)
    for (name, (_, _, size)), tensor in zip(heads.items(), data, strict=True):
      flat = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
      if flat.nbytes != size:
        raise ValueError(f'{name} has {flat.nbytes} bytes; {size} were announced')
      file.write(flat.data)
    file.flush()
    os.fsync(file.fileno())


def kind_of(dtype: Any) -> str:
  """What the format calls a floating dtype."""
  return _NAMES[np.dtype(dtype)]
