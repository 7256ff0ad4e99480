"""Side by side with bare loops and the peers: speed, memory and bytes. See RESULTS.md."""
