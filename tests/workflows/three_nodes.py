"""Stage 1 on a cluster of three nodes, one of which is lost in the middle.

It begins while there is nothing but a head without CPUs, as where an autoscaler has taken all
machines away; the other two come once something has asked for them.

`python -m tests.workflows.three_nodes PIPELINE` ends with the exit code of the stage. It says on
its standard output which node was lost, and how many shards there were then and at the end.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster
from rich.console import Console

from features.job import SCALES_TO
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


def grow_when_asked(cluster: Any, *, ended: threading.Event) -> None:
    """Add two nodes when actors are waiting, as an autoscaler does."""
    while not ended.is_set():
        asked = [a for a in actors().values() if "ShardEncoder" in a["ActorClassName"]]
        if asked:
            say(f"{len(ray.nodes())} node, {len(asked)} actors asked for")
            for _ in range(2):
                cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            say(f"{len(ray.nodes())} nodes")
            return
        time.sleep(0.05)


def main(path: str) -> None:
    cluster = Cluster(
        initialize_head=True,
        shutdown_at_exit=False,  # handlers of signals, which only the main thread may set
        head_node_args={"num_cpus": 0, "include_dashboard": False},
    )
    os.environ[SCALES_TO] = '[{"max": 2, "CPU": 1}]'
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
        pipeline = load_pipeline(Path(path))
        store = Path(pipeline.store_root)
        ended = threading.Event()
        losing = threading.Thread(
            target=lose_a_node, args=(cluster,), kwargs={"store": store, "ended": ended}
        )
        growing = threading.Thread(target=grow_when_asked, args=(cluster,), kwargs={"ended": ended})
        losing.start()
        growing.start()
        try:
            with Connection() as connection:
                embed(pipeline, connection=connection, console=Console())
        finally:
            ended.set()
            losing.join()
            growing.join()
        alive = sum(node["Alive"] for node in ray.nodes())
        say(f"done with {alive} nodes alive")
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
