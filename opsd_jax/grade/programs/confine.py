"""Shuts the process in that calls `enter` and `limit`, step by step.

In the order in which they are taken:

- a lowered user, where the caller is root: an id of its own for each process;
- `namespaces` of Linux, where an ordinary user may make them: no network, no sight of other processes
  and no signals to them, every file system read-only except a working folder of bounded size, nothing in
  /run and /tmp, and with the first process all others end;
- limits on memory, processor time, sizes of files, open files and processes;
- no capabilities, and none to be had again.

Runs inside the sandbox: imports the standard library alone.
"""

import ctypes
import os
import resource
import struct
import sys

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000  # ns uts ipc user pid net
_REMOUNT_PRIVATE = 0x4000 | 0x40000  # MS_REC, MS_PRIVATE
_NOSUID_NODEV = 0x2 | 0x4
_READ_ONLY, _BIND = 0x1, 0x1000
_SOCKETS = ('/run', '/tmp')  # where programs of the user listen, who do what they are told there
_MOUNT_SETATTR, _RECURSIVE = 442, 0x8000  # the number of the call is the same on all architectures
_DUMPABLE, _DEATH_SIGNAL, _BOUNDING_DROP, _NO_NEW_PRIVILEGES, _SUBREAPER = 4, 1, 24, 38, 36
_CAPABILITIES_VERSION = 0x20080522


def enter(user: int | None, namespaces: bool, folder: str, disk: int) -> None:
  """Lowers the user and makes namespaces.

  Args:
    user: the user and group id to take, for root; None to stay who one is.
    namespaces: whether to make them.
    folder: the working folder, which exists and belongs to the user.
    disk: bytes that the folder may hold, under namespaces.

  Raises:
    OSError: the machine does not allow it.
  """
  if user is not None:
    if namespaces:
      _open_way(sys.base_prefix)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    _LIBC.prctl(_DUMPABLE, 1, 0, 0, 0)  # else the files of /proc/self are root's
  if namespaces:
    _namespaces(folder, disk)
  os.chdir(folder)
  _LIBC.prctl(_DEATH_SIGNAL, 9, 0, 0, 0)  # ends with the grader, however that ends


def fork() -> int:
  """Forks; in the child, which is first in its namespace of processes, 0, in the parent its id."""
  _LIBC.prctl(_SUBREAPER, 1, 0, 0, 0)
  child = os.fork()
  if not child:
    _LIBC.prctl(_DEATH_SIGNAL, 9, 0, 0, 0)
  return child


def limit(seconds: float, memory: int, file_size: int, processes: int) -> None:
  """Sets the limits of this process and its children, and gives up every capability."""
  wanted = {
    resource.RLIMIT_CPU: int(seconds) + 2,
    resource.RLIMIT_AS: memory,
    resource.RLIMIT_FSIZE: file_size,
    resource.RLIMIT_NOFILE: 256,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NPROC: processes,
  }
  for what, value in wanted.items():
    hard = resource.getrlimit(what)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))
  for capability in range(64):
    _LIBC.prctl(_BOUNDING_DROP, capability, 0, 0, 0)
  _LIBC.capset(struct.pack('Ii', _CAPABILITIES_VERSION, 0), bytes(24))
  _LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def hide() -> None:
  """Closes this process's memory and files to other processes of the same user."""
  _LIBC.prctl(_DUMPABLE, 0, 0, 0, 0)


def tasks_of_user() -> int:
  """How many threads this user has on the machine: what a limit on processes counts without namespaces."""
  count, own = 0, os.getuid()
  for name in filter(str.isdigit, os.listdir('/proc')):
    try:
      if os.stat(f'/proc/{name}').st_uid == own:
        count += len(os.listdir(f'/proc/{name}/task'))
    except OSError:  # ended meanwhile
      continue
  return count


def _namespaces(folder: str, disk: int) -> None:
  user, group = os.getuid(), os.getgid()
  _call(_LIBC.unshare(_NEW), 'make namespaces')
  for name, text in (
    ('setgroups', 'deny'),
    ('uid_map', f'{user} {user} 1'),
    ('gid_map', f'{group} {group} 1'),
  ):
    with open(f'/proc/self/{name}', 'w') as file:
      file.write(text)
  try:
    with open('/proc/sys/user/max_user_namespaces', 'w') as file:  # of the new namespace alone
      file.write('0')
  except OSError:
    pass
  _call(_LIBC.mount(None, b'/', None, _REMOUNT_PRIVATE, None), 'make mounts private')
  _make_read_only('/', _RECURSIVE)
  options = f'size={disk},nr_inodes=4096,mode=700'.encode()
  _call(_LIBC.mount(b'tmpfs', os.fsencode(folder), b'tmpfs', _NOSUID_NODEV, options), 'mount a folder')
  for place in _SOCKETS:
    if os.path.isdir(place) and not _is_in(sys.base_prefix, place):
      _cover(place, folder)
  _call(_LIBC.mount(b'tmpfs', b'/proc', b'tmpfs', _NOSUID_NODEV | _READ_ONLY, b'size=4k'), 'cover /proc')


def _cover(place: str, folder: str) -> None:
  """Shows of a folder of the host nothing but the working folder, if that is in it."""
  work = os.open(folder, os.O_PATH | os.O_CLOEXEC)
  _call(
    _LIBC.mount(b'tmpfs', os.fsencode(place), b'tmpfs', _NOSUID_NODEV, b'size=1m,mode=755'), 'cover a folder'
  )
  if _is_in(folder, place):
    _bind(work, folder)
  os.close(work)
  _make_read_only(place, 0)


def _is_in(path: str, place: str) -> bool:
  return os.path.commonpath([os.path.realpath(path), os.path.realpath(place)]) == os.path.realpath(place)


def _make_read_only(path: str, flags: int) -> None:
  attributes = struct.pack('QQQQ', _READ_ONLY, 0, 0, 0)
  done = _LIBC.syscall(_MOUNT_SETATTR, -100, os.fsencode(path), flags, attributes, len(attributes))
  _call(done, 'mount read-only')


def _bind(descriptor: int, path: str) -> None:
  """Makes what is open as `descriptor` appear at a path that is not there yet."""
  os.makedirs(path, mode=0o755)
  _call(_LIBC.mount(f'/proc/self/fd/{descriptor}'.encode(), os.fsencode(path), None, _BIND, None), 'bind')


def _call(result: int, what: str) -> None:
  if result:
    number = ctypes.get_errno()
    raise OSError(number, f'cannot {what}: {os.strerror(number)}')


def _open_way(path: str) -> None:
  """Lets others reach `path`, in mounts of this process's own, where a folder above it is closed to them."""
  above = ['/']
  for part in path.strip('/').split('/')[:-1]:
    above.append(os.path.join(above[-1], part))
  closed = [folder for folder in above if not os.stat(folder).st_mode & 0o001]
  if not closed or _LIBC.unshare(_NEW & 0x00020000):
    return
  target = os.open(path, os.O_PATH | os.O_CLOEXEC)
  _call(_LIBC.mount(None, b'/', None, _REMOUNT_PRIVATE, None), 'make mounts private')
  _call(_LIBC.mount(b'tmpfs', os.fsencode(closed[0]), b'tmpfs', 0, b'size=1m,mode=755'), 'mount a folder')
  _bind(target, path)
  os.close(target)
