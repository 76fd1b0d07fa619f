"""`accelerate launch` that passes on what a stage needs: its end, its signals, its exit code.

accelerate's launcher starts the trainer as its child and has four habits that a run cannot live
with; this module undoes them and leaves the launching itself to accelerate:

- it dies at once on Ctrl-C or SIGTERM, before the trainer has written its checkpoint: here it
  passes the signal on and waits (with several processes, torch's own launcher does that);
- it closes the descriptor of the terminal: that becomes the trainer's standard input, which
  nothing reads;
- it gives a trainer on a CPU one thread: all are offered, and the trainer takes its share;
- it ends with 1 whatever the trainer's exit code was.

Usage: python -m rft.training.launch [accelerate launch's arguments] -m rft.stages.train JOBS.json
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from rft import process


def _pass_on(signum: int, _: Any) -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    if not children:
        sys.exit(process.INTERRUPTED)
    for child in children:
        os.kill(int(child), signum)


def main() -> None:
    process.die_with_parent()
    signal.signal(signal.SIGINT, _pass_on)
    signal.signal(signal.SIGTERM, _pass_on)
    terminal = os.environ.get("RFT_TERMINAL")
    if terminal:
        os.dup2(int(terminal), 0)
        os.environ["RFT_TERMINAL"] = "0"
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

    from accelerate.commands.launch import launch_command, launch_command_parser

    args = launch_command_parser().parse_args()
    try:
        launch_command(args)
    except subprocess.CalledProcessError as fault:
        sys.exit(fault.returncode if fault.returncode > 0 else 128 - fault.returncode)
    except Exception as fault:
        # torch's launcher is only imported where it was used; its signal and child errors.
        codes = [f.exitcode for f in getattr(fault, "failures", {}).values()]
        if not codes and not hasattr(fault, "sigval"):
            raise
        print(fault, file=sys.stderr)
        # With several processes the first to fail has the others ended by signals.
        meant = [code for code in codes if code in (2, process.INTERRUPTED)]
        sys.exit(meant[0] if meant else 1 if codes else process.INTERRUPTED)


if __name__ == "__main__":
    main()
