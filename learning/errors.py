"""Why nothing was learned."""

from collections.abc import Iterator
from contextlib import contextmanager


class LearningError(Exception):
    """There is not enough to learn from, or what was learned may not be used; says what to do about it."""


@contextmanager
def refused_by(library: str) -> Iterator[None]:
    """Whatever a library raises inside, as a LearningError in one line; what is wrong is data or parameters."""
    try:
        yield
    except LearningError:
        raise
    except Exception as error:  # each library has a dozen classes of errors, and no common one
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LearningError(f"{library} refused the examples or the parameters: {said}") from error
