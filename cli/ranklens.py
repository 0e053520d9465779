"""The RankLens protocol on a stack of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli.bundle import apply_bundle, load_bundle
from cli.connections import Services
from cli.fresh import embedded_only, make_room
from cli.output import progress_bar
from cli.stack import Stack
from learning.errors import LearningError
from learning.ranklens import RankLens, RankLensRequest, RankLensSite, read_events
from services.chassis.errors import Kind, ServiceError
from services.chassis.rpc_client import connect

SITE = Path(__file__).parents[1] / "examples" / "ranklens"
# The split that the published figures are for: parameters were frozen before it, features go on.
TRAIN_BEFORE_MS = 1_636_994_425_000
SCORE_BEFORE_MS = 1_636_994_610_000
FILES = ("*.jsonl", "*.jsonl.gz")


def published_split() -> RankLensRequest:
    """What the published figures are for."""
    return RankLensRequest(TRAIN_BEFORE_MS, TRAIN_BEFORE_MS, SCORE_BEFORE_MS)


def event_files(folder: Path) -> list[Path]:
    """The event files of a folder.

    Raises:
        ServiceError: NOT_FOUND when there are none.
    """
    files = sorted(file for pattern in FILES for file in folder.glob(pattern))
    if not files:
        raise ServiceError(Kind.NOT_FOUND, "NO_EVENTS", f"{folder} holds no *.jsonl or *.jsonl.gz with RankLens events")
    return files


async def evaluate(
    files: Sequence[Path], request: RankLensRequest, data_dir: Path, *, quiet: bool, resume: bool = False
) -> dict[str, Any]:
    """NDCG of the platform on real people's choices, with simple rankers beside it; nothing is left running.

    Args:
        resume: go on from what an earlier run on the same files left in the folder. Everything is told once more, what
            is there already changes nothing, and so the figures are those of one run.

    Raises:
        ServiceError: INVALID when a file holds no RankLens events, FAILED_PRECONDITION when it cannot be judged.
    """
    bundle = load_bundle(SITE)
    placement, policy = bundle.placements[0].message, bundle.policies[0].message
    site = RankLensSite(placement.id, policy.ranker.model, tuple(purpose.message.id for purpose in bundle.purposes))
    try:
        events = read_events(files)
    except LearningError as error:
        raise ServiceError(Kind.INVALID, "NOT_RANKLENS", str(error)) from error
    embedded_only()
    await make_room(data_dir, resume=resume)
    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task("ranklens", total=None)
        async with (
            Stack(data_dir, disposable=True) as stack,
            Services(stack.addresses, model_key=stack.data_dir.model_key) as services,
        ):
            await apply_bundle(bundle, services)
            channels = {name: connect(address) for name, address in stack.addresses.items()}
            run = RankLens(
                channels,
                site,
                events,
                request,
                sign=services.sign,
                progress=lambda step, done, most: bar.update(
                    task, description=f"ranklens: {step}", completed=done, total=most or None
                ),
            )
            try:
                return (await run.run()).as_dict()
            except LearningError as error:
                raise ServiceError(Kind.FAILED_PRECONDITION, "NOT_JUDGED", str(error)) from error
            finally:
                for channel in channels.values():
                    await channel.close()
