"""A Ray of this machine with a dashboard, until standard input ends.

`python -m tests.workflows.job_server METRICS_PORT` says the dashboard's address on its standard
output. Jobs find the Python that runs this, and this process's environment.
"""

from __future__ import annotations

import os
import sys

import ray


def main(metrics_port: str) -> None:
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    context = ray.init(
        num_cpus=2,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=0,
        log_to_driver=False,
        logging_level="warning",
        object_store_memory=128 * 1024**2,
        _metrics_export_port=int(metrics_port),
    )
    sys.stdout.write(f"http://{context.dashboard_url}\n")
    sys.stdout.flush()
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
