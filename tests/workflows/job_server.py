"""A Ray of this machine with a dashboard, until standard input ends.

`python -m tests.workflows.job_server METRICS_PORT AGENT_PORT` says the dashboard's address on its
standard output. Jobs find the Python that runs this, and this process's environment. The agent that
starts jobs has a port of its own, since several Rays on one machine would all take the same.
"""

from __future__ import annotations

import os
import sys

from ray.cluster_utils import Cluster


def main(metrics_port: str, agent_port: str) -> None:
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": 0,
            "dashboard_agent_listen_port": int(agent_port),
            "metrics_export_port": int(metrics_port),
            "object_store_memory": 128 * 1024**2,
        },
    )
    sys.stdout.write(f"http://{cluster.webui_url}\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
