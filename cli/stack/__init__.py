"""Everything a site needs on one machine: real servers from wheels and the five services, started and stopped.

Owns the data directory (`.comity/`). Knows how services are started, nothing of what they do.
"""
