"""Protobuf ↔ domain: the only translator. Everything above the wire speaks the domain's words."""
