"""What behavior is, which of it may be taken in, and which decision it answers. Pure and synchronous."""
