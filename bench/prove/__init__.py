"""`make prove`: the promises at full size, each with its teeth shown."""
