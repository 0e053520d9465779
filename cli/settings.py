"""The COMITY_* variables that there are: one that is misspelled is refused, before what it was to set is left out."""

import importlib
import os
import sys
from collections.abc import Iterable, Mapping

import typer

from cli.failures import show
from cli.options import MODEL_KEY_VARIABLE
from cli.stack.external import VARIABLES
from cli.stack.programs import COMMON_SETTINGS
from cli.stack.provision import SERVICES
from cli.stack.state import DATA_DIR_VARIABLE, JOURNAL_VARIABLE
from services.chassis.errors import Kind, ServiceError
from services.chassis.settings import ServiceSettings, unknown_among

PREFIXES = {service: f"COMITY_{service.upper()}_" for service in SERVICES}
# What commands read, but for the settings of each service, which it knows itself.
KNOWN = (
    DATA_DIR_VARIABLE,
    JOURNAL_VARIABLE,
    MODEL_KEY_VARIABLE,
    *VARIABLES.values(),
    # What services are told of NATS is said once for all of them.
    *(f"COMITY_{name}".upper() for name in ServiceSettings.model_fields if name.startswith("nats_")),
    *(f"COMITY_{name}" for name in COMMON_SETTINGS),
    *(f"{prefix}ADDRESS" for prefix in PREFIXES.values()),
)


def require_known() -> None:
    """Returns when no variable of this shell is misspelled that commands read; else ends the command with code 2."""
    others = [name for name in os.environ if not name.upper().startswith(tuple(PREFIXES.values()))]
    _refuse(unknown_among(others, "COMITY_", KNOWN))


def require_known_of_services() -> None:
    """The same for what the services of a stack are told; before any of them is started."""
    for service, prefix in PREFIXES.items():
        own = [name for name in os.environ if name.upper().startswith(prefix)]
        common = [f"{prefix}{name}".upper() for name in ("address", *ServiceSettings.model_fields)]
        if unknown_among(own, prefix, common):  # loading the service takes a second, and few set anything of its own
            fields = importlib.import_module(f"services.{service}.main").Settings.model_fields
            _refuse(unknown_among(own, prefix, [*common, *(f"{prefix}{name}".upper() for name in fields)]))


def _refuse(unknown: Mapping[str, str]) -> None:
    if unknown:
        as_json = "--json" in sys.argv[1:]
        show(ServiceError(Kind.INVALID, "UNKNOWN_SETTING", _sentence(unknown.items())), as_json=as_json)
        raise typer.Exit(2)


def _sentence(unknown: Iterable[tuple[str, str]]) -> str:
    named = (f"{name} is no setting{f' (did you mean {meant}?)' if meant else ''}" for name, meant in unknown)
    return f"{'; '.join(named)}, and has no effect; correct it, or unset it"
