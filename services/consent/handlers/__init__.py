"""What consent does when it is asked, against ports: the ledger, and the rights of a person over all that is held."""
