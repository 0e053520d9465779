"""`comity`: the command line. Each module adds its commands; this one only puts them together."""

import importlib
import sys

import typer
from typer.exceptions import TyperException

# Order of the commands in --help. A module imports what is heavy inside its commands, so that `comity status` is quick.
MODULES = (
    "cli.up",
    "cli.commands_site",
    "cli.commands_decide",
    "cli.commands_log",
    "cli.commands_consent",
    "cli.commands_identity",
    "cli.commands_privacy",
    "cli.commands_learning",
    "cli.commands_demo",
    "cli.commands_bench",
    "cli.trace",
)

app = typer.Typer(
    name="comity",
    help="Decide what each person should see, within what they agreed to.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in MODULES:
    importlib.import_module(module).register(app)


@app.callback(invoke_without_command=True)
def _without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


def main() -> None:
    """Run the command line and exit: 0 it is done, 1 it could not be done, 2 the arguments are wrong."""
    try:
        code = typer.main.get_command(app).main(prog_name="comity", standalone_mode=False)
        sys.exit(code or 0)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "comity"
        print(f"error: {error.format_message().rstrip('.')}; see `{command} --help`", file=sys.stderr)
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(130)


if __name__ == "__main__":
    main()
