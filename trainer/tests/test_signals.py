import subprocess
import sys
from pathlib import Path

TRAINER = Path(__file__).parents[1]

A_CHILD_IS_TOLD = """
import os, signal, time
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))  # as early as can be
from training.signals import stop_at_sigterm
stop = stop_at_sigterm()
child = os.fork()
if not child:
    os._exit(5)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
assert not stop.wait(0.2)
os.kill(os.getpid(), signal.SIGTERM)
assert stop.wait(5)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(5)
"""


def test_what_a_child_is_told_is_not_its_parents():
    ended = subprocess.run([sys.executable, "-c", A_CHILD_IS_TOLD], cwd=TRAINER, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (143, "")
