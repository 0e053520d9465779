"""Site bundles: read, checked offline, applied to the running services.

Owns the form of a bundle's files. What they mean is decided by the services: apply asks each of them to
validate before any of them publishes.
"""

from pathlib import Path

from cli.bundle.applying import Applied, apply_bundle
from cli.bundle.bundle import Bundle, Declared
from cli.bundle.checks import cross_problems
from cli.bundle.loading import Loader
from cli.bundle.problem import BundleError, Problem

__all__ = ["Applied", "Bundle", "BundleError", "Declared", "Problem", "apply_bundle", "check_bundle", "load_bundle"]


def check_bundle(folder: Path, *, feed: Path | None = None) -> tuple[Bundle, list[Problem]]:
    """The bundle and every problem that can be found without a service, in order of file and line.

    Args:
        folder: holds site.yaml and the rest.
        feed: JSON-lines file of items, beside or instead of items.yaml.
    """
    loader = Loader(folder)
    bundle = loader.load(feed)
    if not folder.is_dir():  # one problem says it; that everything is missing follows
        return bundle, [Problem(str(folder), 0, 0, "", "is no folder", "name the folder that holds site.yaml")]
    found = set(loader.problems)
    # What one file says about another is known once each of them can be read: else one mistake would look like dozens.
    if loader.has_read_all:
        found.update(cross_problems(bundle))
    return bundle, sorted(map(loader.named, found))


def load_bundle(folder: Path, *, feed: Path | None = None) -> Bundle:
    """The bundle, when nothing is wrong with it.

    Raises:
        BundleError: with every problem.
    """
    bundle, problems = check_bundle(folder, feed=feed)
    if problems:
        raise BundleError(folder, problems)
    return bundle
