"""The processes of the five services: how each is started, and what it is told by its environment."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import services
from cli.stack.external import nats_files
from cli.stack.processes import Command
from cli.stack.replicas import service_of
from cli.stack.state import SUPERVISOR, DataDir
from cli.stack.users import service_uid

# A log that has grown past this is set aside at the next start of its service; one older one is kept.
LOG_BYTES_MAX = 16 * 1024 * 1024
ROOT = Path(services.__file__).parents[1]

# Secrets that a service is handed, by the setting that names the file.
SECRETS: Mapping[str, Mapping[str, str]] = {
    "identity": {"PEPPER_FILE": "pepper", "KEK_FILE": "kek"},
    "consent": {"RECEIPT_KEY_FILE": "receipt_key"},
    "decision": {
        "SEED_KEY_FILE": "seed_key",
        "TOKEN_KEY_FILE": "token_key",
        "MODEL_PUBLIC_KEY_FILE": "model_public_key",
    },
    "feedback": {"TOKEN_KEY_FILE": "token_key"},
}
SECRET_NAMES = sorted({name for secrets in SECRETS.values() for name in secrets.values()} - {"model_public_key"})
# Whom a service calls: it is told where those are, and no others.
CALLS: Mapping[str, tuple[str, ...]] = {
    "identity": ("consent",),
    "consent": ("identity", "features", "decision", "feedback"),
    "features": ("identity", "consent", "feedback"),
    "decision": ("identity", "consent", "features"),
    "feedback": ("identity", "consent"),
}
# Who opens the cache.
CACHED = ("features",)
# What a Decide may take in a stack, unless somebody says otherwise: five services, three servers and whoever asks share
# the cores of one machine, where decision's own 50 ms would show how a busy laptop misses it and little else.
BUDGET_MS = 400
# May be set for all services at once, as COMITY_LOG_LEVEL.
COMMON_SETTINGS = ("OTLP_ENDPOINT", "TRACE_RATIO", "LOG_LEVEL")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is the same for all services.

    Args:
        addresses: where every service is called.
        secret_files: file of each secret, by its name.
        journal: folder of consent's journal.
    """

    addresses: Mapping[str, str]
    databases: Mapping[str, str]
    nats_url: str
    redis_url: str
    traces: Path
    logs: Path
    secret_files: Mapping[str, Path]
    journal: Path


def budgets(budget_ms: int, *, read_ms: int | None = None) -> dict[str, dict[str, str]]:
    """Settings by service that give a Decide so long: a Revoke waits for it.

    Args:
        read_ms: what consent's read may take of it; half, where nothing is said.
    """
    return {
        "decision": {"COMITY_DECISION_BUDGET_MS_MAX": str(budget_ms)},
        "consent": {
            "COMITY_CONSENT_DECIDE_BUDGET_MS_MAX": str(budget_ms),
            "COMITY_CONSENT_EVALUATE_TIMEOUT_MS": str(read_ms or budget_ms // 2),
        },
    }


def command(name: str, listen: str, around: Surroundings, overrides: Mapping[str, str]) -> Command:
    """How to start a process of a service.

    Args:
        name: of the process: the service's, or a replica's.
        listen: host:port of this process.
        overrides: set last.
    """
    service = service_of(name)
    return Command(
        name=name,
        argv=argv(service),
        env={**environment(service, listen, around), **overrides},
        log=around.logs / f"{name}.log",
        cwd=ROOT,
        uid=service_uid(),
        reads_all=True,
        writes=(around.traces, *([around.journal] if service == "consent" else [])),
    )


def supervisor(folder: DataDir) -> Command:
    """How a supervisor of the stack in the folder is started."""
    return Command(
        name=SUPERVISOR,
        argv=(sys.executable, "-m", "cli.stack.watch", str(folder.path)),
        env=os.environ,
        log=folder.logs / f"{SUPERVISOR}.log",
        cwd=ROOT,
    )


def argv(service: str) -> tuple[str, ...]:
    """The service's program."""
    return (sys.executable, "-m", f"services.{service}.main")


def environment(service: str, listen: str, around: Surroundings) -> dict[str, str]:
    """Settings of the service, over the environment of this process."""
    settings = {
        "LISTEN": listen,
        "DATABASE_URL": around.databases[service],
        "NATS_URL": around.nats_url,
        "TRACES_DIR": str(around.traces),
        # There is no balancer here that has to look away before a service stops.
        "DRAIN_S": "0",
    }
    settings |= {f"{peer.upper()}_ADDRESS": where for peer, where in around.addresses.items() if peer in CALLS[service]}
    settings |= {"REDIS_URL": around.redis_url} if service in CACHED else {}
    settings |= {"JOURNAL_DIR": str(around.journal)} if service == "consent" else {}
    settings |= {key: str(around.secret_files[name]) for key, name in SECRETS.get(service, {}).items()}
    settings |= {name: os.environ[f"COMITY_{name}"] for name in COMMON_SETTINGS if f"COMITY_{name}" in os.environ}
    settings |= {name: str(path) for name, path in nats_files().items()}
    prefix = f"COMITY_{service.upper()}_"
    # What is another service's, or the administrator's, a service must not know; where it is itself, commands ask.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("COMITY_") or (name.startswith(prefix) and name != f"{prefix}ADDRESS")
    }
    # One process a core: threads of the numeric libraries would only fight each other (performance.md).
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    defaults = budgets(BUDGET_MS).get(service, {})
    return {**threads, **defaults, **inherited, **{f"{prefix}{name}": value for name, value in settings.items()}}


def rotate(log: Path) -> None:
    """Set a long log aside."""
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_suffix(".1.log"))
