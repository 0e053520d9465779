"""The use cases of decision, over the ports they need."""
