"""The one shared library: what every service needs and none of them owns.

A pure floor (errors, ids, clock, deadline, events, ports), then I/O in layers that only point down:
telemetry and postgres; event store, bus, cache, sealing, gRPC; inbox, relay and lifecycle. It knows no service.
"""
