"""What feedback does, as use cases over ports: take behavior in, join it to decisions, give the log out again."""
