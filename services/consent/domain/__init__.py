"""What consent knows, pure: purposes, answers, what stands of them, and the verdicts that follow."""
