"""Stands between the engine and a stage program: no process of a job outlives the job or the engine.

``python -I -S job_process.py COMMAND...`` runs the command in a session of its own. Standard input is a lifeline: the
byte ``T`` sends SIGTERM to the program (``docker stop`` signals process 1 alone), ``K`` or its end kills the program
and everything it started. The exit status is the program's, or 128 + signal; 126 and 127 mean that it could not be
started, as in a shell.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading


def kill_all(program: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(program.pid, signal.SIGKILL)


def obey(program: "subprocess.Popen[bytes]") -> None:
    """Carry out orders from standard input until it ends, which means that the engine is gone."""
    while order := os.read(0, 1):
        if order == b"T":
            program.send_signal(signal.SIGTERM)
        else:
            kill_all(program)
    kill_all(program)


def main(command: list[str]) -> int:
    try:
        program = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return 127 if isinstance(error, FileNotFoundError) else 126
    threading.Thread(target=obey, args=(program,), daemon=True).start()
    status = program.wait()
    kill_all(program)  # a container ends with its first process
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
