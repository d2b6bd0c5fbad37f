"""Messages over a stream socket: eight bytes of length, then the bytes.

Runs inside the sandbox: imports the standard library alone.
"""

import socket


def send(channel: socket.socket, message: bytes) -> None:
  """Sends one message."""
  channel.sendall(len(message).to_bytes(8, 'big'))
  channel.sendall(message)


def receive(channel: socket.socket, limit: int) -> bytes:
  """The next message.

  Raises:
    EOFError: the other side is gone.
    ValueError: the message is longer than `limit` bytes.
  """
  size = int.from_bytes(_exactly(channel, 8), 'big')
  if size > limit:
    raise ValueError(f'a message of {size} bytes')
  return _exactly(channel, size)


def _exactly(channel: socket.socket, size: int) -> bytes:
  found = bytearray()
  while len(found) < size:
    part = channel.recv(min(size - len(found), 1 << 20))
    if not part:
      raise EOFError('the other side is gone')
    found += part
  return bytes(found)
