"""Why nothing was learned."""


class LearningError(Exception):
    """There is not enough to learn from, or what was learned may not be used; says what to do about it."""
