"""``python -m compress``: the stage program."""

import sys

from job import JobKind, run_stage

if __name__ == "__main__":
    sys.exit(run_stage("compress", JobKind.PROCESSING, "compress.stage"))
