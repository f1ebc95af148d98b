"""Asks for the parameters of a stack, suggests answers from the account, and writes samconfig.toml."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from session_reaper.errors import ConfigurationError

from session_reaper_cli.setup.account import TAG_KEY, Account, Network, look_at_account
from session_reaper_cli.setup.samconfig import write_answers

Say = Callable[[str], None]

# As in template.yaml.
_TAG: Final = (re.compile(r"[\w .:/+@-]+=[\w .:/+@-]+"), "write key=value")
_EMAIL: Final = (re.compile(r"([^@\s]+@[^@\s]+\.[^@\s]+)?"), "write one address, or nothing")
_SUBNETS: Final = (
    re.compile(r"(subnet-[0-9a-f]+(,subnet-[0-9a-f]+)*)?"),
    "write subnet-…,subnet-…, or nothing",
)
_GROUPS: Final = (re.compile(r"sg-[0-9a-f]+(,sg-[0-9a-f]+)*"), "write sg-…, comma-separated")


@dataclass(frozen=True, slots=True, kw_only=True)
class InitOptions:
    """The command's options. `accepts_all`: take each suggestion without asking."""

    environment: str
    path: Path
    looks: bool
    accepts_all: bool


def run_init(options: InitOptions, say: Say) -> None:
    """Look, ask at most five questions, write the file, and say the next command.

    Raises ConfigurationError.
    """
    account = look_at_account() if options.looks else Account(problem="not asked to")
    _describe(account, say)
    answers = _ask(account, options, say)
    try:
        text = options.path.read_text("utf-8") if options.path.exists() else ""
        text = write_answers(text, options.environment, account.region, answers)
        options.path.write_text(text, "utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read or written: {type(error).__name__}"
        raise ConfigurationError(str(options.path), problem) from None
    say(
        f"{options.path} has the answers for ENV={options.environment}; the stack begins to observe."
    )
    _say_next(account, options, answers, say)


def _describe(account: Account, say: Say) -> None:
    if account.problem:
        say(
            f"Cannot look at the AWS account ({account.problem}). The questions have no suggestions."
        )
        return
    say(
        f"Region {account.region}, {len(account.databases)} PostgreSQL databases on RDS and Aurora:"
    )
    for each in account.databases:
        place = "public" if each.is_public else f"private, in {each.vpc}"
        say(f"- {each.name}: {each.host}:{each.port}, {place}")


def _ask(account: Account, options: InitOptions, say: Say) -> Mapping[str, str]:
    stage = "prod" if options.environment == "default" else options.environment
    tag = str(account.tags[0].value) if account.tags else stage
    suggested = f"{TAG_KEY}={tag}"
    read = _Questions(accepts_all=options.accepts_all)
    return {
        "TargetSecretTag": read.ask("Tag of the databases' secrets", suggested, _TAG),
        **_ask_network(account, read, say),
        "Email": read.ask("Email address for the summaries (empty: none)", "", _EMAIL),
        "Mode": "observe",
    }


def _ask_network(account: Account, read: "_Questions", say: Say) -> Mapping[str, str]:
    network = account.network
    if network is None and account.databases:
        return {"SubnetIds": "", "SecurityGroupIds": ""}  # all have public addresses
    if network is not None and network.subnets and read.confirm(_propose(account, network)):
        subnets, group = ",".join(network.subnets), network.security_group
    else:
        subnets = read.ask("Subnets of the function (empty: outside of any VPC)", "", _SUBNETS)
        group = ""
    if subnets and not group:
        say(
            "The databases must let a security group in on their port: create one for the function,"
            " and a rule for it in the databases' group."
        )
        group = read.ask("Security groups of the function", "", _GROUPS)
    return {"SubnetIds": subnets, "SecurityGroupIds": group if subnets else ""}


def _propose(account: Account, network: Network) -> str:
    inside = [d.name for d in account.databases if d.vpc == network.vpc and not d.is_public]
    verb = "is" if len(inside) == 1 else "are"
    group = f" with security group {network.security_group}" if network.security_group else ""
    return (
        f"{', '.join(inside)} {verb} private, in {network.vpc}: run in subnets"
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
            return read(suggested)
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


def _say_next(account: Account, options: InitOptions, answers: Mapping[str, str], say: Say) -> None:
    network = account.network
    if network and answers["SubnetIds"] == ",".join(network.subnets) and not network.has_nat:
        say(
            "These subnets have no NAT, so the function needs endpoints of AWS's services in them:"
            " docs/deployment.md, In a VPC."
        )
    say("Next:")
    if not account.tags:
        first = account.databases[0] if account.databases else None
        server = f"{first.host}:{first.port}" if first else "HOST"
        name = first.name if first else "NAME"
        say(
            f"  session-reaper onboard postgres://OWNER@{server}/postgres --name {name}"
            f" --tag {answers['TargetSecretTag']}"
        )
    env = "" if options.environment == "default" else f" ENV={options.environment}"
    say(f"  make deploy{env}")
