"""The front door: `sonoshard COMMAND`. Heavy imports happen inside the commands, so that help answers at once."""

from collections.abc import Callable

import typer

from launch.commands.judging import doctor, downstream, evaluate, verify
from launch.commands.models import average, export, merge, sample
from launch.commands.running import databases, demo, encode, memory, prepare, status, submit, train
from launch.freed_memory import keep_freed_memory
from launch.quiet import quiet_libraries
from launch.terminal import tell_in_lines

app = typer.Typer(
    name="sonoshard",
    help="Fine-tune Stable Diffusion on ultrasound images, in little memory, on one machine or many.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Help lists them in this order.
COMMANDS: tuple[Callable[..., None], ...] = (
    *(demo, databases, prepare, encode, train, submit, status, memory),
    *(average, merge, evaluate, downstream, sample, export, verify, doctor),
)
for command in COMMANDS:
    if command is sample:  # its options are those of the sampler, which stands alone
        to_pass_on = {"allow_extra_args": True, "ignore_unknown_options": True}
        app.command(add_help_option=False, context_settings=to_pass_on)(command)
    else:
        app.command()(command)


def main() -> None:
    """Run the command line."""
    keep_freed_memory()
    quiet_libraries()
    tell_in_lines()
    app()


if __name__ == "__main__":
    main()
