"""What identity knows, pure: identities and their pseudonyms, subjects as the fold of links, answers to Resolve."""
