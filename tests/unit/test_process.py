"""How a stage's process lives and dies with the runner."""

import os
import subprocess
import sys

import pytest

CHILD = "from rft.process import die_with_parent; die_with_parent(); print('alive')"
RUNNER = f"""
import os, subprocess, sys
env = {{**os.environ, "RFT_PARENT": str(os.getpid())}}
print(os.getpid(), flush=True)
sys.exit(subprocess.run([sys.executable, "-c", {CHILD!r}], env=env).returncode)
"""


def test_stages_live_where_the_runner_is_process_1() -> None:
    """As in a container, where `rft run` is all there is."""
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare may not make process namespaces here")
    done = subprocess.run(
        [*alone, sys.executable, "-c", RUNNER], capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.returncode) == (["1", "alive"], 0), done.stderr


def test_an_orphan_ends_at_once() -> None:
    """Its parent was gone before it could ask to be told: process 1 has taken it over."""
    code = f"""
import os, time
if os.fork() == 0:
    time.sleep(0.5)
    if os.getppid() != 1: print('taken over by another', flush=True)
    {CHILD}
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "RFT_PARENT": "4242"},
    )
    if "taken over" in done.stdout:
        pytest.skip("orphans go to another process than 1 here")
    assert "alive" not in done.stdout
