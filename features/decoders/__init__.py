"""Decoders: one module a kind, from the bytes or cells of a payload to what encoders prepare."""
