"""What the shards of an encoder are called, and where they lie in the store."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from features.fingerprint import DIGEST_BYTES


def shard_fingerprint(*, encoder: str, keys: str) -> str:
    """Name of the shard that an encoder makes of payloads, given the hash of their keys."""
    digest = hashlib.blake2b(f"{encoder}/{keys}".encode(), digest_size=DIGEST_BYTES)
    return digest.hexdigest()


def patch_fingerprint(*, encoder: str, shard: str, keys: Mapping[int, bytes]) -> str:
    """Name of the patch over a shard that holds some of its rows, given each row's payload key."""
    digest = hashlib.blake2b(f"{encoder}/{shard}".encode(), digest_size=DIGEST_BYTES)
    for row in sorted(keys):
        digest.update(row.to_bytes(4, "little") + keys[row])
    return digest.hexdigest()


def embedding_path(*, encoder: str, shard: str) -> str:
    """Where an embedding shard lies in the store."""
    return f"embeddings/{encoder}/{shard}.parquet"


def quarantine_path(*, encoder: str, shard: str) -> str:
    """Where the quarantined rows of an embedding shard lie."""
    return f"quarantine/{encoder}/{shard}.parquet"
