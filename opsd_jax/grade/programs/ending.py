"""Ends a process with everything that it started, and removes what it wrote."""

import os
import signal
import subprocess
import sys
import time

_ROUNDS = 100
_LEAVE_SECONDS = 2
_LEAST = 512  # bytes that any entry counts for, empty files too
# Who kills may signal that user's processes and, having another real and saved id, gets no signal of theirs.
_AS_USER = (
  'import os, sys; u = int(sys.argv[1]); os.setgroups([]); os.setresgid(u, u, u); '
  'os.setresuid(u + 1, u, u + 1); os.kill(-1, 9)'
)


def end(popen: subprocess.Popen, folder: str, user: int | None, namespaces: bool) -> None:
  """Kills the process and all that come from it, until nothing is found.

  Args:
    popen: the leader of a session.
    folder: what its environment names as HOME: how the strays of an ordinary user are found.
    user: the user id that is its own, as the next one is, or None.
    namespaces: whether all ends with the first process of a namespace.
  """
  _kill(_descendants(popen.pid))
  try:
    popen.wait(_LEAVE_SECONDS)  # it ends when nothing below it is left
  except subprocess.TimeoutExpired:
    _kill([*_descendants(popen.pid), popen.pid])
    popen.wait()
  popen.stdout.close()
  if namespaces:
    return
  if user is not None:
    command = [sys.executable, '-I', '-S', '-c', _AS_USER, str(user)]
    subprocess.run(command, check=False, stderr=subprocess.DEVNULL)  # it fails where there is nobody to kill
    return
  for _ in range(_ROUNDS):
    left = _strays(popen.pid, folder)
    if not left:
      return
    _kill(left)
    time.sleep(0.005)


def remove(folder: str) -> None:
  """Removes a folder, whatever a program did to what is in it."""
  try:
    os.rmdir(folder)
  except OSError:
    for command in (['chmod', '-R', 'u+rwx'], ['rm', '-rf']):
      subprocess.run([*command, '--', folder], check=False, stderr=subprocess.DEVNULL)


def holds_more(folder: str, limit: int) -> bool:
  """Whether a folder's files, as far as they can be seen, take more than `limit` bytes of the disk."""
  total, folders = 0, [folder]
  while folders and total <= limit:
    try:
      with os.scandir(folders.pop()) as entries:
        for entry in entries:
          total += max(_LEAST, entry.stat(follow_symlinks=False).st_blocks * 512)
          if entry.is_dir(follow_symlinks=False):
            folders.append(entry.path)
    except OSError:  # removed meanwhile, or closed to us
      continue
  return total > limit


def _kill(processes: list[int]) -> None:
  for process in processes:
    try:
      os.kill(process, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
      continue


def _descendants(process: int) -> list[int]:
  """All processes below one that has not been waited for, parents first."""
  found = [process]
  for one in found:
    try:
      with open(f'/proc/{one}/task/{one}/children') as file:
        found += map(int, file.read().split())
    except OSError:  # it is gone, or was never there
      continue
  return found[1:]


def _strays(session: int, folder: str) -> list[int]:
  """This user's processes of that session, or with that folder as their HOME; the dead do not count."""
  home, found = f'HOME={folder}'.encode(), []
  for name in filter(str.isdigit, os.listdir('/proc')):
    try:
      with open(f'/proc/{name}/stat', 'rb') as file:
        state, _, _, belongs = file.read().rpartition(b')')[2].split()[:4]
      with open(f'/proc/{name}/environ', 'rb') as file:
        environment = file.read().split(b'\0')
    except OSError:  # another user's, or gone
      continue
    if state not in b'ZX' and (int(belongs) == session or home in environment):
      found.append(int(name))
  return found
