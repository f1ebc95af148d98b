"""Asks for a stack's parameters, suggests answers from the account, and writes samconfig.toml."""

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from session_reaper.errors import ConfigurationError

from session_reaper_cli.setup.account import TAG_KEY, Account, look_at_account
from session_reaper_cli.setup.network import Network
from session_reaper_cli.setup.network_stack import NetworkStack, plan_network_stack
from session_reaper_cli.setup.samconfig import (
    read_answers,
    read_region,
    read_stack,
    write_answers,
)
from session_reaper_cli.stopping import StopRemark, count_interrupts
from session_reaper_cli.terminal import is_interactive, say

# As in template.yaml.
_TAG: Final = (re.compile(r"[\w .:/+@-]+=[\w .:/+@-]+", re.ASCII), "write key=value")
_EMAIL: Final = (re.compile(r"([^@\s]+@[^@\s]+\.[^@\s]+)?"), "write one address, or nothing")
_SUBNETS: Final = (
    re.compile(r"(subnet-[0-9a-f]+(,subnet-[0-9a-f]+)*)?"),
    "write subnet-…,subnet-…, or nothing",
)
_GROUPS: Final = (re.compile(r"sg-[0-9a-f]+(,sg-[0-9a-f]+)*"), "write sg-…, comma-separated")
_GROUPS_OR_NONE: Final = (
    re.compile(rf"({_GROUPS[0].pattern})?"),
    "write sg-…, comma-separated, or nothing",
)
_OUTSIDE: Final = {"SubnetIds": "", "SecurityGroupIds": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class InitOptions:
    """The command's options. `accepts_all`: take each suggestion without asking."""

    environment: str
    path: Path
    looks: bool
    accepts_all: bool


def run_init(options: InitOptions) -> None:
    """Look, ask at most five questions, write the file, and say the next commands.

    Raises ConfigurationError.
    """
    if not options.accepts_all and not is_interactive():
        raise ConfigurationError("init", "needs a terminal to ask; write --yes to accept defaults")
    with StopRemark("Nothing was written."):
        text = _read(options.path)
        stack = read_stack(text, options.environment)
        earlier = read_answers(text, options.environment)
        account = Account(problem="not asked to")
        if options.looks:
            account = look_at_account(f"{stack}-network", read_region(text, options.environment))
        if not options.path.with_name("template.yaml").exists():
            say(
                f"WARNING: {options.path} is not beside template.yaml, where `make deploy` needs it"
            )
        _describe(account)
        answers = _ask(account, earlier, options)
        text = write_answers(text, options.environment, account.region, answers)
    with count_interrupts():  # it ends at once, and then the file and the next commands are there
        _write(options.path, text)
        say(
            f"{options.path} has the answers for ENV={options.environment},"
            f" with Mode={answers['Mode']}."
        )
        for line in _describe_next(account, options, stack, {**earlier, **answers}):
            say(line)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(str(path), f"cannot be read: {type(error).__name__}") from None


def _write(path: Path, text: str) -> None:
    """Replace the file as a whole, so that a failure leaves the old one."""
    fresh = path.with_name(f"{path.name}.new")
    try:
        fresh.write_text(text, "utf-8")
        fresh.replace(path)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise ConfigurationError(str(path), f"cannot be written: {error.strerror}") from None


def _describe(account: Account) -> None:
    if account.problem:
        say(
            f"Cannot look at the AWS account ({account.problem}). The questions have no suggestions."
        )
        return
    for refusal in account.refusals:
        say(f"WARNING: without {refusal.permission}, init cannot look there ({refusal.cause})")
    count = len(account.databases)
    hint = "" if count else " (AWS_PROFILE and AWS_REGION choose where to look)"
    say(f"Region {account.region}, PostgreSQL databases on RDS and Aurora: {count}{hint}")
    for each in account.databases:
        place = "public" if each.is_public else f"private, in {each.vpc}"
        say(f"- {each.name}: {each.host}:{each.port}, {place}")


# -- the questions ---------------------------------------------------------------------------------


def _ask(account: Account, earlier: Mapping[str, str], options: InitOptions) -> Mapping[str, str]:
    stage = "prod" if options.environment == "default" else options.environment
    tag = str(account.tags[0].value) if account.tags else stage
    suggested = earlier.get("TargetSecretTag") or f"{TAG_KEY}={tag}"
    read = _Questions(accepts_all=options.accepts_all)
    return {
        "TargetSecretTag": read.ask("Tag of the databases' secrets", suggested, _TAG),
        **_ask_network(account, earlier, read),
        "Email": read.ask(
            "Email address for the summaries (empty: none)", earlier.get("Email", ""), _EMAIL
        ),
        "Mode": earlier.get("Mode") or "observe",
    }


def _ask_network(
    account: Account, earlier: Mapping[str, str], read: "_Questions"
) -> Mapping[str, str]:
    before = {name: earlier.get(name, "") for name in _OUTSIDE}
    is_complete = all(before.values())
    network = account.network
    if is_complete:
        question = f"Run in {before['SubnetIds']} with {before['SecurityGroupIds']}, as before?"
        if read.confirm(question):
            return before
    elif account.databases and all(each.is_public for each in account.databases):
        return _OUTSIDE
    elif network and network.subnets and read.confirm(_propose(network)):
        question = "Security groups of the function (empty: the network stack makes one)"
        group = network.security_group or read.ask(question, "", _GROUPS_OR_NONE)
        return {"SubnetIds": ",".join(network.subnets), "SecurityGroupIds": group}
    suggested = "" if is_complete else before["SubnetIds"]
    subnets = read.ask("Subnets of the function (empty: outside of any VPC)", suggested, _SUBNETS)
    if not subnets:
        return _OUTSIDE
    question = "Security groups of the function, which the databases admit"
    return {"SubnetIds": subnets, "SecurityGroupIds": read.ask(question, "", _GROUPS)}


def _propose(network: Network) -> str:
    names = [each.name for each in network.databases]
    verb = "is" if len(names) == 1 else "are"
    group = f" with security group {network.security_group}" if network.security_group else ""
    return (
        f"{', '.join(names)} {verb} private, in {network.vpc}: run in subnets"
        f" {', '.join(network.subnets)}{group}?"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Questions:
    """Asks on the terminal, on the standard error."""

    accepts_all: bool

    def ask(self, question: str, suggested: str, form: tuple[re.Pattern[str], str]) -> str:
        """Ask for a text of this form until the answer has it."""
        pattern, hint = form

        def read(answer: str) -> str:
            if not pattern.fullmatch(answer.strip()):
                raise click.UsageError(hint)
            return answer.strip()

        if self.accepts_all:
            if not pattern.fullmatch(suggested):
                raise ConfigurationError("--yes", f"cannot answer {question!r}: {hint}")
            return suggested
        has_default = bool(suggested) or pattern.fullmatch("") is not None
        return str(
            click.prompt(
                question,
                default=suggested if has_default else None,
                show_default=bool(suggested),
                value_proc=read,
                err=True,
            )
        )

    def confirm(self, question: str) -> bool:
        """Ask a question that is answered by yes as a rule."""
        return self.accepts_all or click.confirm(question, default=True, err=True)


# -- the next commands -----------------------------------------------------------------------------


def _describe_next(
    account: Account, options: InitOptions, stack: str, parameters: Mapping[str, str]
) -> Iterator[str]:
    """Yield what to do now: notes, and then the commands in their order."""
    planned = _plan_network(account, parameters)
    env = "" if options.environment == "default" else f" ENV={options.environment}"
    commands = []
    if not account.tags:
        elsewhere = account.region != account.shell_region
        region = f"AWS_REGION={account.region} " if elsewhere else ""
        places = {each.name: f"{each.host}:{each.port}" for each in account.databases}
        tag = shlex.quote(parameters["TargetSecretTag"])
        commands += [
            f"{region}session-reaper onboard postgres://OWNER@{place}/postgres --name {name} --tag {tag}"
            for name, place in (places or {"NAME": "HOST"}).items()
        ]
        if account.network:
            yield "From outside of the VPC, add --via localhost:PORT, the end of a tunnel, to onboard."
    if planned and account.network and account.network.has_stack:
        yield (
            f"The stack {stack}-network exists, but lacks something that the function needs: deploy it"
            " again with all of its parameters and these (docs/deployment.md, The network)."
        )
        yield f"  {_join(planned.parameters)}"
    elif planned:
        commands.append(f'make attach ADD=network{env} PARAMETERS="{_join(planned.parameters)}"')
    if account.network and _is_inside(account.network, parameters):
        yield from _describe_unreached(account, account.network, parameters, planned)
    if planned and not parameters["SecurityGroupIds"]:
        if account.network and account.network.knows_groups:
            commands.append(f"{_write_command(options)} --yes")
        else:
            yield "In the second `init`, answer with the network's output SecurityGroupIds as the group."
            commands.append(_write_command(options))
    commands += [f"make deploy{env}", f"make check-remote{env}"]
    if parameters["Email"]:
        yield "AWS asks that address to confirm; do it before the last command, which sends a summary."
    else:
        yield "The summaries have no recipient: answer with an address, or subscribe to the stack's topic."
    yield "Next:"
    for command in commands:
        yield f"  {command}"


def _plan_network(account: Account, parameters: Mapping[str, str]) -> NetworkStack | None:
    network = account.network
    if network is None or not _is_inside(network, parameters):
        return None
    uses_ssm = parameters["Mode"].startswith("ssm:") or parameters.get("PolicyParameterName")
    more = ("ssm",) if uses_ssm else ()
    return plan_network_stack(network, parameters["SecurityGroupIds"], more)


def _is_inside(network: Network, parameters: Mapping[str, str]) -> bool:
    return parameters["SubnetIds"] == ",".join(network.subnets)


def _describe_unreached(
    account: Account,
    network: Network,
    parameters: Mapping[str, str],
    planned: NetworkStack | None,
) -> Iterator[str]:
    """Yield which databases the function does not reach from this network."""
    given = set(parameters["SecurityGroupIds"].split(",")) - {""}
    closed = [name for name, admitted in network.admitted_groups.items() if not admitted & given]
    if not given:
        closed = list(planned.uncovered) if planned else []
    if closed:
        yield f"Admit the function to these databases yourself: {', '.join(closed)}."
    outside = [
        each.name
        for each in account.databases
        if each.vpc not in ("", network.vpc) and not (each.is_public and network.has_nat)
    ]
    if outside:
        yield (
            f"Outside of {network.vpc}: {', '.join(outside)}. The function reaches them by a route of"
            " yours, or a second stack does, with a tag of its own (docs/regions-accounts.md)."
        )


def _write_command(options: InitOptions) -> str:
    environment = "" if options.environment == "default" else f" --env {options.environment}"
    file = "" if options.path == Path("samconfig.toml") else f" --file {options.path}"
    return f"session-reaper init{environment}{file}"


def _join(parameters: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in parameters.items())
