"""The command `session-reaper`: reads the command line and starts the commands.

Each command imports its modules when it runs, so that help and errors of usage come at once.
"""

# ruff: noqa: PLC0415 -- as above
import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import shell_complete

from session_reaper_cli.stopping import StopRemark, TerminatedError, raise_on_termination
from session_reaper_cli.streams import open_missing_streams, settle_streams

if TYPE_CHECKING:
    from session_reaper.errors import TargetError
    from session_reaper.settings import Tag
    from session_reaper.targets.target import Endpoint, Target

    from session_reaper_cli.connections.login import Invocation

_NAME: Final = "session-reaper"
_COMPLETION: Final = "_SESSION_REAPER_COMPLETE"  # the variable that click's scripts set
_ERROR: Final = 2  # an exit status; results.py has all
_SHORTEST_PAUSE: Final = 0.1  # seconds between two refreshes
_HIGHEST_PORT: Final = 65535
_HELP: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def main() -> None:
    """Run the command of this process's arguments, and exit."""
    open_missing_streams()
    region = os.environ.get("AWS_REGION")
    if region:  # the AWS CLI reads both variables, boto3 only the other one
        os.environ["AWS_DEFAULT_REGION"] = region
    status = run(sys.argv[1:])
    settle_streams()
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit status; an error takes one line, and its remedy another."""
    try:
        with raise_on_termination():
            status = _invoke(arguments)
            sys.stdout.flush()
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return error.exit_code
    except TerminatedError as stop:
        return _stop(stop, stop.number)
    except (click.Abort, KeyboardInterrupt, EOFError) as stop:  # EOFError: no input at a question
        return _stop(stop, Signals.SIGINT)
    except BrokenPipeError:  # `| head` has read enough
        return 0
    except Exception as error:  # noqa: BLE001 -- every other error, a bug included, is one line and exit status 2
        return _explain(error)
    return int(status or 0)


def _stop(stop: BaseException, number: Signals) -> int:
    with suppress(OSError):
        print("\nStopped.", *getattr(stop, "__notes__", ()), file=sys.stderr, flush=True)
    return 128 + number


def _invoke(arguments: Sequence[str]) -> int | None:
    """Run a command, or answer the shell that completes one."""
    instruction = os.environ.get(_COMPLETION)
    if instruction:
        return shell_complete(app, {}, _NAME, _COMPLETION, instruction)
    try:
        with app.make_context(_NAME, list(arguments)) as context:
            status: int | None = app.invoke(context)
            return status
    except click.exceptions.Exit as end:  # of --help and --version
        return end.exit_code


def _explain(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno == errno.EIO:
        return 128 + Signals.SIGHUP  # the terminal is gone, so what happened cannot be told there

    from session_reaper.errors import ReaperError

    from session_reaper_cli.terminal import say, say_sentences, show_traceback

    show_traceback(error)
    if isinstance(error, ReaperError):
        say_sentences(f"session-reaper: {error}")
    elif isinstance(error, OSError):
        say(f"session-reaper: the output cannot be written: {error.strerror}")
    else:  # its text may hold anything
        say(f"session-reaper: a bug: {type(error).__name__}")
        say("Please report it. SESSION_REAPER_TRACEBACK=1 shows where it happened.")
    return _ERROR


def _print_version(context: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001 -- click's signature
    if value and not context.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"session-reaper {version('session-reaper')}")
        except PackageNotFoundError:
            print("session-reaper (not installed)")
        context.exit()


_EXAMPLES: Final = """\b
Examples:
  session-reaper top postgres://app@db.example/orders
  PGSERVICE=orders session-reaper reap
  session-reaper reap --secret prod/orders --enforce

Name the server by a URI, DATABASE_URL, libpq's environment (PGHOST, PGSERVICE, ...) with ~/.pgpass, or
--secret. Other users of this machine can see a password in a URI argument; leave it out, and the
command asks for it. TLS is verified (sslmode=verify-full) unless you choose another sslmode.

\b
Exit status: 0 nothing to do, or all done; 1 something needs attention;
2 an error of usage, policy or connection.
"""


class _Commands(click.Group):
    """Shows no part of a URI that stands where a command should."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of the arguments. Raises click.UsageError."""
        from session_reaper.documents import may_hold_credential

        if may_hold_credential(args[0]) or "=" in args[0]:
            ctx.fail(
                "write a command here, and the server after it (not shown): session-reaper top URI"
            )
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings=_HELP, epilog=_EXAMPLES)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
def app() -> None:
    """See who holds the connection slots of a PostgreSQL server, and free them safely."""


def _find_target(uri: str, secret: str) -> "Target":
    """Return the target. Raises ConfigurationError, TargetError."""
    if secret:
        from session_reaper.deadline import Deadline

        from session_reaper_cli.connections.secret import find_secret_target

        if uri:
            raise click.UsageError("write either a URI or --secret")
        return find_secret_target(secret, Deadline(20))
    from session_reaper_cli.connections.target import find_target
    from session_reaper_cli.terminal import say_sentences

    found = find_target(uri, os.environ, Path.home())
    if found.warning:
        say_sentences(f"WARNING: {found.warning}")
    return found.target


def _read_duration(text: str) -> float:
    """Read a duration such as 30s or 5m; a plain number means seconds."""
    from session_reaper.documents import short_repr
    from session_reaper.policy.durations import parse_duration

    seconds = parse_duration(f"{text}s" if text.replace(".", "", 1).isdecimal() else text)
    if seconds is None:
        raise click.BadParameter(f"{short_repr(text)} is not a duration; write 30s or 2m")
    return seconds


def _read_endpoint(text: str) -> "Endpoint":
    """Read the host and port of a tunnel's end."""
    from session_reaper.documents import short_repr
    from session_reaper.targets.target import Endpoint

    found = re.fullmatch(r"\[?([\w.:-]+?)\]?:([0-9]{1,5})", text)
    if not found or not 0 < int(found[2]) <= _HIGHEST_PORT:
        problem = f"{short_repr(text)}: write HOST:PORT, such as localhost:15432"
        raise click.BadParameter(problem)
    return Endpoint.of(found[1], int(found[2]))


def _read_pause(text: str) -> float:
    """Read a duration that is not too short for the server."""
    seconds = _read_duration(text)
    if seconds < _SHORTEST_PAUSE:
        raise click.BadParameter(f"write {_SHORTEST_PAUSE} or more: each refresh costs the server")
    return seconds


def _connects(
    command: Callable[..., int], at_stop: str = "Nothing was changed."
) -> Callable[..., int]:
    """Add the options of a connection to a command, and explain the errors of the server.

    `at_stop`: what to say at Ctrl-C, until the command withdraws it.
    """

    @click.argument("servers", nargs=-1, metavar="[URI]")
    @click.option(
        "--secret",
        default="",
        metavar="NAME",
        help="Connect with this secret of AWS Secrets Manager.",
    )
    @click.option(
        "--via",
        type=_read_endpoint,
        metavar="HOST:PORT",
        help="Connect through this tunnel to the server.",
    )
    @click.option(
        "--wait",
        type=_read_duration,
        metavar="DURATION",
        default="30s",
        show_default=True,
        help="How long to retry while the server has no free slot.",
    )
    @wraps(command)
    def call_command(  # noqa: PLR0913 -- click passes each option
        servers: Sequence[str],
        secret: str,
        via: "Endpoint | None",
        wait: float,
        policy: str = "",
        *,
        as_json: bool = False,
        **options: Any,  # noqa: ANN401 -- each command's own
    ) -> int:
        from session_reaper.errors import ConfigurationError, TargetError

        from session_reaper_cli.connections.login import Invocation
        from session_reaper_cli.policies import load
        from session_reaper_cli.terminal import make_console, say_sentences

        if len(servers) > 1:
            problem = "write one URI, or name=value pairs in one pair of quotes (not shown)"
            raise click.UsageError(problem)
        with StopRemark(at_stop) as remark:
            try:
                target = replace(_find_target("".join(servers), secret), via=via)
            except TargetError as error:  # of the secret
                raise ConfigurationError("--secret", f"{error.message}. {error.hint}") from None
            call = Invocation(
                target=target,
                wait=wait,
                policy=load(policy),
                output=make_console(),
                say=say_sentences,
                stop_remark=remark,
                as_json=as_json,
            )
            try:
                return command(call, **options)
            except TargetError as error:
                return _fail(error, call)

    return call_command


def _fail(error: "TargetError", call: "Invocation") -> int:
    """Say why the server could not be worked on, and what to do."""
    from session_reaper.summary.prose import Statement, split_hint

    from session_reaper_cli.remedies import write_remedy
    from session_reaper_cli.terminal import say, say_sentences

    target = call.target
    remedy = write_remedy(error, target)
    if call.as_json:
        _print_failure(error, remedy, call)
    say_sentences(f"session-reaper: {target.name}: {error.message} ({error.code})")
    for part in split_hint(remedy):
        if isinstance(part, Statement):  # it stands alone, to be copied
            say(f"    {part.text}")
        else:
            say_sentences(str(part).strip())
    return _ERROR


def _print_failure(error: "TargetError", remedy: str, call: "Invocation") -> None:
    from session_reaper.policy.enums import Mode
    from session_reaper.report.model import record_error
    from session_reaper.runs.target_report import create_report

    from session_reaper_cli.results import make_report, print_json, to_return_value

    report = record_error(create_report(call.target), error)
    failure = report.error and report.error._replace(hint=remedy)
    failed = replace(report, error=failure)
    print_json(to_return_value(make_report(failed, Mode.OBSERVE)), call.output)


def _show_examples(*arguments: str) -> str:
    """Write the end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  session-reaper {each}" for each in arguments)


_policy_option = click.option(
    "--policy",
    type=click.Path(),
    default="",
    metavar="FILE",
    help="YAML or JSON. Without it the default policy applies.",
)
_role_option = click.option(
    "--role",
    default="",
    metavar="ROLE",
    help="Only sessions of this role. With your own role, pg_read_all_stats is not needed,"
    " and its sessions are not protected.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@app.command(epilog=_show_examples("top postgres://app@db.example/orders --watch 2"))
@_connects
@_policy_option
@click.option(
    "--watch",
    type=_read_pause,
    metavar="SECONDS",
    help="Refresh until Ctrl-C.",
)
@_json_option
def top(call: "Invocation", watch: float | None) -> int:
    """Show who holds the connection slots, and who blocks whom."""
    from session_reaper_cli.top.command import show_top

    return show_top(call, watch)


@app.command(epilog=_show_examples("explain postgres://app@db.example/orders --application 'api*'"))
@_connects
@_policy_option
@click.option("--application", default="*", metavar="GLOB", help="Only these applications.")
@click.option(
    "--role",
    default="*",
    metavar="GLOB",
    help="Only sessions of these roles. The name of one role explains what `reap --role` does.",
)
@click.option("--state", default="*", metavar="GLOB", help="Only sessions in these states.")
@_json_option
def explain(call: "Invocation", application: str, role: str, state: str) -> int:
    """Show the decision on every session, and why.

    For a session that no rule matches, it names the rule that comes closest.
    """
    from session_reaper_cli.explain import Filters, run_explain

    return run_explain(call, Filters(application=application, role=role, state=state))


@app.command(epilog=_show_examples("check postgres://app@db.example/orders"))
@_connects
@_json_option
def check(call: "Invocation") -> int:
    """Show what the server lacks, with the SQL that fixes it."""
    from session_reaper_cli.check import run_check

    return run_check(call)


@app.command(
    epilog=_show_examples(
        "reap postgres://app@db.example/orders",
        "reap postgres://app@db.example/orders --role app --enforce",
    )
)
@partial(_connects, at_stop="Nothing was signalled.")
@_policy_option
@_role_option
@click.option("--enforce", is_flag=True, help="Ask, then terminate the sessions.")
@click.option("--yes", "unasked", is_flag=True, help="Do not ask.")
@_json_option
def reap(call: "Invocation", role: str, *, enforce: bool, unasked: bool) -> int:
    """Show which sessions would be terminated, or terminate them.

    Without --enforce it terminates nothing. With --enforce it shows the sessions and asks.
    """
    from session_reaper_cli.policies import restrict_to_role
    from session_reaper_cli.reap import run_reap

    if role:
        call = replace(call, policy=restrict_to_role(call.policy, role))
    return run_reap(call, role=role, enforce=enforce, unasked=unasked)


@app.command(epilog=_show_examples("record postgres://app@db.example/orders > recording.json"))
@_connects
def record(call: "Invocation") -> int:
    """Print a recording of all sessions, for `replay`.

    Queries are redacted.
    """
    from session_reaper_cli.check import run_record

    return run_record(call)


@app.command(epilog=_show_examples("replay recording.json --policy new.yaml --against old.yaml"))
@click.argument("recording", metavar="FILE", type=click.Path(path_type=Path))
@_policy_option
@click.option(
    "--against",
    type=click.Path(),
    metavar="FILE",
    help='Show what differs under this policy; "" is the default one.',
)
@click.option("--target", metavar="NAME", help="Only this target of the recording.")
def replay(recording: Path, policy: str, against: str | None, target: str | None) -> None:
    """Show what a policy decides on a recording, offline."""
    from session_reaper.report.text import printable

    from session_reaper_cli import replay as replays

    for line in list(replays.replay(recording, policy, against, target)):
        print(printable(line, 2000))


def _read_tag(text: str) -> "Tag":
    """Read a tag of AWS as key=value."""
    from session_reaper.documents import short_repr
    from session_reaper.settings import Tag

    # As in template.yaml.
    if not re.fullmatch(r"[\w .:/+@-]+=[\w .:/+@-]+", text, re.ASCII):
        allowed = "letters, digits, spaces and _.:/+@-"
        raise click.BadParameter(
            f"{short_repr(text)} is not a tag; write key=value, with {allowed}"
        )
    key, _, rest = text.partition("=")
    return Tag(key=key, value=rest)


def _read_name(_: click.Context, param: click.Parameter, value: str) -> str:
    """Read the name of a secret, which must not be an ARN or another service's."""
    from session_reaper.targets.target import is_secret_id

    if not is_secret_id(value) or ":" in value or "!" in value:
        problem = "must be the name of a secret: letters, digits and /_+=.@- (not shown)"
        raise click.BadParameter(problem, param=param)
    return value


def _read_role(_: click.Context, param: click.Parameter, value: str) -> str:
    """Read the name of a role that needs no quotes in SQL."""
    from session_reaper.documents import short_repr

    if not re.fullmatch(r"(?!pg_|rds)[a-z_][a-z0-9_]{0,62}", value):
        problem = f"{short_repr(value)}: write lower case letters, digits and _; not pg_… or rds…"
        raise click.BadParameter(problem, param=param)
    return value


_ONBOARD_EXAMPLES: Final = """\b
session-reaper onboard postgres://postgres@db.example/orders --name orders --tag session-reaper=prod
session-reaper onboard --secret 'rds!db-1234' --name orders --tag session-reaper=prod
session-reaper onboard postgres://postgres@db.example/orders --name orders --rotate
"""


@app.command(epilog=_ONBOARD_EXAMPLES)
@partial(_connects, at_stop="The role and the secret are unchanged.")
@click.option("--name", required=True, callback=_read_name, help="Name of the function's secret.")
@click.option(
    "--tag", type=_read_tag, metavar="KEY=VALUE", help="Tag by which the stack finds the secret."
)
@click.option(
    "--role",
    default="session_reaper",
    show_default=True,
    callback=_read_role,
    help="Name of the reaper's role.",
)
@click.option("--iam", is_flag=True, help="Use IAM authentication instead of a password.")
@click.option("--rotate", is_flag=True, help="Give the role a new password.")
@click.option("--remove", is_flag=True, help="Drop the role and delete the secret.")
@click.option("--dry-run", "is_dry", is_flag=True, help="Only show the SQL and the calls to AWS.")
def onboard(  # noqa: PLR0913 -- click passes each option
    call: "Invocation",
    name: str,
    tag: "Tag | None",
    role: str,
    *,
    iam: bool,
    rotate: bool,
    remove: bool,
    is_dry: bool,
) -> int:
    """Create the reaper's role and secret, as the database's owner."""
    from session_reaper_cli.onboarding.onboard import run_onboard
    from session_reaper_cli.onboarding.plan import Wish
    from session_reaper_cli.terminal import say

    if rotate and (iam or remove):
        raise click.UsageError("--rotate cannot be combined with --iam or --remove")
    wish = Wish(name=name, role=role, tag=tag, iam=iam, rotate=rotate)
    return run_onboard(replace(call, say=say), wish, is_removal=remove, is_dry=is_dry)


@app.command(epilog="\b\nsession-reaper init\nsession-reaper init --env staging --yes")
@click.option("--env", default="default", show_default=True, help="Environment in the file.")
@click.option(
    "--file",
    default="samconfig.toml",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The file to write.",
)
@click.option("--no-aws", "is_blind", is_flag=True, help="Do not read the AWS account.")
@click.option("--yes", "accepts_all", is_flag=True, help="Accept every default; do not ask.")
def init(env: str, file: Path, *, is_blind: bool, accepts_all: bool) -> None:
    """Prepare a deployment: ask, and write samconfig.toml."""
    from session_reaper_cli.setup.init import InitOptions, run_init

    if not re.fullmatch(r"[a-z][a-z0-9-]*", env):
        raise click.BadParameter("write lower case letters, digits and -", param_hint="--env")
    options = InitOptions(environment=env, path=file, looks=not is_blind, accepts_all=accepts_all)
    run_init(options)


@app.group(cls=_Commands)
def policy() -> None:
    """Validate a policy, print its schema or the default."""


@policy.command(epilog=_show_examples("policy validate policy.yaml"))
@click.argument("file", type=click.Path(path_type=Path))
def validate(file: Path) -> int:
    """Show each error, and each key whose meaning has changed.

    Each error with its place; of one rule or key only the first. A valid policy: what means
    something else since 0.1.
    """
    from session_reaper.policy.model import read_policy
    from session_reaper.report.text import printable

    from session_reaper_cli.policies import read_document
    from session_reaper_cli.policy_validation import find_errors, list_changes

    document = read_document(file)
    errors = find_errors(document)
    for error in errors:
        print(printable(f"{file}: {error}", 2000))
    if errors:
        return _ERROR
    print(printable(f"{file}: valid", 2000))
    for change in list_changes(read_policy(document)):
        print(printable(f"since 0.1: {change}", 2000))
    return 0


@policy.command(epilog=_show_examples("policy schema > policy.schema.json"))
def schema() -> None:
    """Print the JSON Schema of a policy, for editors."""
    from session_reaper_cli.policy_schema import write_schema

    print(write_schema(), end="")


@policy.command("show-default", epilog=_show_examples("policy show-default > policy.yaml"))
def show_default() -> None:
    """Print the default policy, to be copied."""
    import yaml
    from session_reaper.runs.policy_text import parse_document, read_bundled

    print(yaml.safe_dump(parse_document(read_bundled()), sort_keys=False, width=100), end="")
