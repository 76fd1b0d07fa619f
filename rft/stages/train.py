"""Stage 5: LoRA fine-tuning of each arm on its selected rows.

Runs under `accelerate launch` (python -m rft.training.launch, which passes signals and exit codes
on), or alone as `python -m rft.stages.train JOBS.json`. Jobs of one process are trained one after
the other, since starting Python and torch costs more than a small job does. A job is

    {"folder": stage folder, "label": text, "model": Model, "train": Train, "seed": int,
     "rows": folder of TrainRow parts, "match": train stage to train as much as, or null,
     "start": folder of the adapter to go on from, or null,
     "drawn": [{"sample": sample stage of this model, "adapter": folder that it sampled with, or null,
                "dtype": engine.dtype}]}
"""

import os
from pathlib import Path
from typing import Any

from rft import process
from rft.rundir import StageDir
from rft.training.stop import StopSignal


def run(jobs: list[dict[str, Any]]) -> None:
    if os.environ.get("RANK", "0") != "0":
        os.environ["RFT_TERMINAL"] = "2"  # one process speaks; the others write to the log
    todo = [job for job in jobs if StageDir(Path(job["folder"])).manifest() is None]
    with StopSignal() as stop:
        for job in todo:
            from rft.training.job import (
                free_memory,
                train_job,
            )  # torch: seconds that a finished stage saves

            train_job(job, stop)
            free_memory()


if __name__ == "__main__":
    process.stage_main(run)
