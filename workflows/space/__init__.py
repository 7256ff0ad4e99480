"""An aligned model's space, searched: its index over a snapshot, queries, and what is found."""
