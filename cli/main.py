"""`comity`: the command line. Each module adds its commands; this one only puts them together."""

import importlib
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from cli.failures import INTERRUPTED, of_system, show
from cli.output import write
from cli.settings import require_known
from services.chassis.errors import Kind, ServiceError

# The commands as --help shows them. A module imports what is heavy inside its commands, so that `status` is quick.
GROUPS = {
    "The stack on this machine": ("cli.up", "cli.commands_service", "cli.commands_backup", "cli.commands_doctor"),
    "The site": ("cli.commands_site",),
    "Decisions": ("cli.commands_decide", "cli.commands_log", "cli.trace"),
    "People": ("cli.commands_consent", "cli.commands_identity", "cli.commands_privacy"),
    "Learning": ("cli.commands_learning", "cli.commands_models"),
    "Trying it out": ("cli.commands_demo", "cli.commands_bench"),
}

app = typer.Typer(
    name="comity",
    help="Decide what each person should see, within what they agreed to.",
    pretty_exceptions_enable=False,
)
for group, modules in GROUPS.items():
    for module in modules:
        importlib.import_module(module).register(app)
    for command in app.registered_commands:
        command.rich_help_panel = command.rich_help_panel or group
    for commands in app.registered_groups:
        commands.rich_help_panel = commands.rich_help_panel or group


def _tell_version(asked: bool) -> None:
    if asked:
        from cli.stack.version import code_version

        write(f"comity {code_version()}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _before(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print which code this is.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        write(context.get_help())
        raise typer.Exit
    if not context.resilient_parsing and "--help" not in sys.argv:
        require_known()


def main() -> None:
    """Run the command line and exit: 0 it is done, 1 it could not be done, 2 the arguments are wrong."""
    # Where the arguments are wrong they are not parsed, and a program that asked for JSON still reads JSON.
    as_json = "--json" in sys.argv[1:]
    try:
        code = typer.main.get_command(app).main(prog_name="comity", standalone_mode=False)
        sys.exit(code or 0)
    except TyperException as error:
        _show_usage(error, as_json=as_json)
        sys.exit(error.exit_code)
    except OSError as error:
        show(of_system(error), as_json=as_json)
        sys.exit(1)
    except (typer.Abort, KeyboardInterrupt):
        # A question that nobody answered, or Ctrl-C between two steps: the cursor still stands in the line.
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _show_usage(error: TyperException, *, as_json: bool) -> None:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "comity"
    message = f"{error.format_message().rstrip('.')}; see `{command} --help`"
    if as_json:
        show(ServiceError(Kind.INVALID, "WRONG_ARGUMENTS", message), as_json=True)
    else:
        write(f"error: {message}", error=True)


if __name__ == "__main__":
    main()
