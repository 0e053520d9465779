"""What is wrong with a bundle, where, and how to mend it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong.

    Args:
        file: path inside the bundle.
        line: from 1; 0 when the file as a whole is meant.
        column: from 1; 0 when the line as a whole is meant.
        path: field inside the file, e.g. `[2].default_slate[0].item_id`; empty for the file.
        problem: what is wrong.
        remedy: what to do about it.
    """

    file: str
    line: int
    column: int
    path: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        """One line a person or an editor can follow: file:line:column: path: problem; remedy."""
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        field = f" {self.path.lstrip('.')}:" if self.path else ""
        return f"{place}:{field} {self.problem}; {self.remedy}"

    def as_json(self) -> dict[str, object]:
        """The same for programs."""
        return asdict(self)


class BundleError(Exception):
    """A bundle that must not be applied; holds every problem that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(sorted(problems))
