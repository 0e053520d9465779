"""What is wrong with a bundle, where, and how to mend it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from services.chassis.errors import FieldProblem, Kind, ServiceError


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
        name: of the entry that the path begins with, as people know it; empty where it has none.
    """

    file: str
    line: int
    column: int
    path: str
    problem: str
    remedy: str
    name: str = ""

    def __str__(self) -> str:
        """One line a person or an editor can follow: file:line:column: path: problem; remedy."""
        return f"{self.place}: {self.problem}; {self.remedy}"

    @property
    def place(self) -> str:
        """file:line:column: path, as far as they are known."""
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        path = self.path.lstrip(".")
        if self.name:
            path = self.name + path[path.index("]") + 1 :]
        return f"{place}: {path}" if path else place

    def as_json(self) -> dict[str, object]:
        """The same for programs."""
        return asdict(self)


class BundleError(ServiceError):
    """A bundle that must not be applied.

    Args:
        found: every problem, in order of file and line.
    """

    def __init__(self, folder: Path, found: Sequence[Problem]) -> None:
        problems = tuple(FieldProblem(problem.place, f"{problem.problem}; {problem.remedy}") for problem in found)
        count = f"{len(found)} problem{'s' * (len(found) != 1)}"
        super().__init__(Kind.INVALID, "BUNDLE_INVALID", f"{folder} is no valid bundle: {count}", problems=problems)
        self.found = tuple(found)
