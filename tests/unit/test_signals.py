"""Signals that arrive while the main thread is inside a system call that they do not interrupt."""

from __future__ import annotations

import signal
import subprocess
import sys

IN_A_SYSTEM_CALL = """
import os, signal, threading
from ckptsync.signals import handled

reading, writing = os.pipe()
with handled([signal.SIGTERM], lambda number: os.write(writing, str(number).encode())):
    # The kernel gives the signal to another thread, as if it had come just before the system call.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    os.kill(os.getpid(), signal.SIGTERM)
    print("handled", os.read(reading, 9).decode())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
print("default", signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, signal.set_wakeup_fd(-1))
"""


def test_a_signal_is_handled_while_the_main_thread_is_inside_a_system_call() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_SYSTEM_CALL], capture_output=True, text=True, timeout=60)

    assert done.stdout.splitlines() == [f"handled {signal.SIGTERM.value}", "default True -1"], done.stderr


def test_blocks_inside_one_another_handle_their_own_signals() -> None:
    program = """
import os, queue, signal
from ckptsync.signals import handled

seen = queue.SimpleQueue()
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)  # A script's `&` or nohup may have this run ignore some.
with handled([signal.SIGTERM, signal.SIGINT], lambda number: seen.put(("outer", number))):
    with handled([signal.SIGHUP], lambda number: seen.put(("inner", number))):
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            print(*seen.get())
    os.kill(os.getpid(), signal.SIGTERM)
    print(*seen.get())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert done.stdout.split("\n") == ["inner 1", "outer 15", "outer 2", "outer 15", ""], done.stderr


def test_what_the_process_was_started_to_ignore_stays_ignored_here_and_in_its_children() -> None:
    program = """
import os, signal, subprocess
from ckptsync.signals import as_inherited, handled

signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with handled([signal.SIGINT], print), handled([signal.SIGHUP], print, though_ignored=True):
    os.kill(os.getpid(), signal.SIGINT)
    with as_inherited():
        found = subprocess.run(["grep", "SigIgn", "/proc/self/status"], capture_output=True, text=True, check=True)
    ignored = int(found.stdout.split()[1], 16)
    print(*(ignored >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGHUP)))
    print(signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert done.stdout.split("\n") == ["1 1", "True", ""], done.stderr
