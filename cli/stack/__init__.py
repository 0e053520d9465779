"""Everything a site needs on one machine: real servers from wheels and the five services, started and stopped.

`async with Stack(folder) as stack:` runs it all and gives addresses; `Servers` are Postgres, NATS and Valkey alone;
`addresses(folder)` says where a stack that was started by `comity up` answers.

Owns the data directory (`.comity/`). Knows how services are started, nothing of what they do.
"""

from cli.stack.parts import USUAL_PORTS
from cli.stack.programs import budgets
from cli.stack.provision import SERVICES
from cli.stack.servers import Servers
from cli.stack.state import DataDir, discard, temporary_folder
from cli.stack.status import Part, StackStatus, addresses, look
from cli.stack.supervisor import Stack

__all__ = [
    "SERVICES",
    "USUAL_PORTS",
    "DataDir",
    "Part",
    "Servers",
    "Stack",
    "StackStatus",
    "addresses",
    "budgets",
    "discard",
    "look",
    "temporary_folder",
]
