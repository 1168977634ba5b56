"""``python -m sfm``: the stage program."""

import sys

from job import JobKind, run_stage

if __name__ == "__main__":
    sys.exit(run_stage("sfm", JobKind.PROCESSING, "sfm.stage"))
