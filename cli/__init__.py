"""The command line, and the stack it runs: wiring and printing, no authority of its own."""
