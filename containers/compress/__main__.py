"""``python -m compress``: the stage program."""

import sys

from compress.stage import OUTPUTS, run, selfcheck
from job import JobKind, run_stage

if __name__ == "__main__":
    sys.exit(run_stage("compress", JobKind.PROCESSING, run, OUTPUTS, selfcheck))
