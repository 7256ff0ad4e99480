"""Stage 1 on a cluster of three nodes, one of which is lost in the middle.

`python -m tests.workflows.three_nodes PIPELINE` ends with the exit code of the stage. It says on
its standard output which node was lost, and how many shards there were then and at the end.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster
from rich.console import Console

from workflows.cluster import Connection
from workflows.embed import embed
from workflows.pipeline import load_pipeline

SHARDS_BEFORE = 4
"""How many shards are finished when the node is lost."""


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def lose_a_node(cluster: Any, *, store: Path, ended: threading.Event) -> None:
    """Wait for some shards, then remove a node that an actor works on, as if its power had gone."""
    while not ended.is_set():
        finished = len(list(store.glob("embeddings/*/*.parquet")))
        busy = {
            actor["Address"]["NodeID"]
            for actor in actors().values()
            if actor["State"] == "ALIVE" and "ShardEncoder" in actor["ActorClassName"]
        }
        doomed = [node for node in cluster.worker_nodes if node.node_id in busy]
        if finished >= SHARDS_BEFORE and doomed:
            cluster.remove_node(doomed[0], allow_graceful=False)
            say(f"lost a node with an actor after {finished} shards")
            return
        time.sleep(0.05)


def main(path: str) -> None:
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
        say(f"{len(ray.nodes())} nodes")
        pipeline = load_pipeline(Path(path))
        store = Path(pipeline.store_root)
        ended = threading.Event()
        losing = threading.Thread(
            target=lose_a_node, args=(cluster,), kwargs={"store": store, "ended": ended}
        )
        losing.start()
        try:
            with Connection() as connection:
                embed(pipeline, connection=connection, console=Console())
        finally:
            ended.set()
            losing.join()
        alive = sum(node["Alive"] for node in ray.nodes())
        say(f"done with {alive} nodes alive")
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
