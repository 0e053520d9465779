"""How a slate is chosen: pure and synchronous; no clock, no dice, no I/O.

vocabulary → site, layout → rules → catalog → exploration → ladder → record → replay, explain. What a decision needs is
fetched first (services.decision.handlers), then decided here, so that a replay takes the very same code.
"""
