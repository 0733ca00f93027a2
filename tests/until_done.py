"""Processes with virtual devices, run again where the CPU's runtime got stuck."""

import subprocess

TRIES = 3


def run_until_done(command, **options) -> subprocess.CompletedProcess:
    """Do as `subprocess.run`; again, up to three times in all, where XLA's runtime for CPUs ended the process.

    Virtual devices share the threads of one CPU. Two of them may begin collectives that do not depend on each other in
    different orders, and wait for each other; after 40 s the runtime aborts the process. Other devices have queues.
    """
    for _ in range(TRIES):
        done = subprocess.run(command, **options)
        if done.returncode != -6 or "rendezvous" not in done.stderr:
            break
    return done
