"""`comity demo`: the main job end to end on a stack of its own, held against what is known to be true.

Owns no behavior of the platform: it is a shop's backend, some visitors who do not exist, and a page that says
what came of it.
"""
