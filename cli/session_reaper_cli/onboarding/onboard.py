"""Onboards a database: creates the reaper's role, and stores its secret."""

from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Final

from session_reaper.deadline import Deadline
from session_reaper.errors import (
    INSUFFICIENT_PRIVILEGE,
    ConfigurationError,
    ConnectionLostError,
    ReaperError,
    TargetError,
)
from session_reaper.grants import quote_identifier
from session_reaper.targets.providers import find_rds_region
from session_reaper.targets.secret_document import (
    SecretError,
    parse_secret,
    require_verified_for_iam,
)
from session_reaper.targets.target import Auth, Secret, Target, is_socket_folder

from session_reaper_cli.check import run_check
from session_reaper_cli.connections.login import Invocation, connect, log_in_with
from session_reaper_cli.connections.parameters import LOOPBACK
from session_reaper_cli.connections.secret import find_secret_target
from session_reaper_cli.onboarding.messages import describe_changes, describe_needs, describe_plan
from session_reaper_cli.onboarding.owner import Owner, RoleFacts, connect_owner
from session_reaper_cli.onboarding.plan import (
    Plan,
    Wish,
    Write,
    make_plan,
    plan_removal,
    refuse_role,
)
from session_reaper_cli.onboarding.secret_text import (
    require_same_login,
    warn_about_tls,
)
from session_reaper_cli.onboarding.standing import Standing, State
from session_reaper_cli.onboarding.vault import StoredSecret, Vault, read_tagged
from session_reaper_cli.results import ExitStatus

_SECONDS: Final = 20.0  # to read the secret again
_WRONG_PASSWORD: Final = "28P01"  # noqa: S105 -- a SQLSTATE
_DEPENDENT_OBJECTS: Final = "2BP01"
_OWNED_ROLES_SINCE: Final = 160000  # the version: CREATEROLE no longer reaches every role


@dataclass(frozen=True, slots=True, kw_only=True)
class Onboarding:
    """One run: the invocation with the owner's login, the owner's connection, and the secret."""

    call: Invocation
    wish: Wish
    owner: Owner
    vault: Vault
    stored: StoredSecret | None
    facts: RoleFacts


def run_onboard(call: Invocation, wish: Wish, *, is_removal: bool, is_dry: bool) -> ExitStatus:
    """Create or update the role and the secret, and check them; or remove both.

    Raises ReaperError, after it has said what stands.
    """
    _refuse_target(wish, call.target)
    vault = Vault(wish.name)
    stored = vault.find()
    if stored is not None and not stored.is_deleted:
        require_same_login(stored.secret, call.target, wish.role)
    owner, call = log_in_with(connect_owner, call)
    with closing(owner):
        facts = owner.read_role(wish.role)
        refuse_role(wish.role, facts)
        run = Onboarding(call=call, wish=wish, owner=owner, vault=vault, stored=stored, facts=facts)
        plan = _make_plan(run, is_removal=is_removal)
        if is_dry:
            for line in describe_plan(plan, wish, call.target):
                call.output.out(line, highlight=False)
            return ExitStatus.DONE
        standing = Standing(
            role_name=wish.role,
            secret_name=wish.name,
            role=State.KEPT if facts.exists else State.ABSENT,
            secret=State.KEPT if stored else State.ABSENT,
            is_tagged=plan.tag is None,
        )
        try:
            call.stop_remark.withdraw()
            _change(run, plan, standing)
            return _finish(run, plan)
        except BaseException as error:
            standing.describe(call.say, has_cause=isinstance(error, Exception))
            raise


def _make_plan(run: Onboarding, *, is_removal: bool) -> Plan:
    if is_removal:
        drop = f"DROP ROLE {quote_identifier(run.wish.role)} yourself"
        _require_secret(run, otherwise=drop)
        return plan_removal(run.wish, run.facts, run.stored)
    _refuse_second_secret(run)
    if run.wish.rotate:
        _require_secret(run, otherwise="leave out --rotate")
    for warning in _warn(run):
        run.call.say(f"WARNING: {warning}")
    is_working = run.facts.exists and _is_stored_login_working(run)
    return make_plan(run.wish, run.call.target, run.facts, run.stored, is_working=is_working)


def _refuse_target(wish: Wish, target: Target) -> None:
    if is_socket_folder(target.host):
        problem = "the function cannot use a Unix socket; write the host that it connects to"
        raise ConfigurationError("server", problem)
    iam = replace(target, auth=Auth.IAM)
    if wish.iam and require_verified_for_iam(iam) is None:
        problem = "needs sslmode=verify-full: the server receives the token as clear text"
        raise ConfigurationError("--iam", problem)


def _require_secret(run: Onboarding, *, otherwise: str) -> None:
    """Raise ConfigurationError if an existing role may be that of a secret of another name."""
    if run.stored is None and run.facts.exists:
        problem = (
            f"does not exist in {run.vault.region}, so the role {run.wish.role} may be that of another"
            f" secret; write its --name and AWS_REGION, or {otherwise}"
        )
        raise ConfigurationError(f"secret {run.wish.name}", problem)


def _refuse_second_secret(run: Onboarding) -> None:
    """Raise ConfigurationError if another secret of the stack has the password of the role."""
    if not run.facts.exists or run.stored is not None or run.wish.tag is None:
        return
    with suppress(SecretError):  # without the right to list secrets, a warning has to do
        for secret in read_tagged(run.wish.tag):
            with suppress(TargetError):
                found = parse_secret(secret, whole_clusters=False).target
                if (found.role, found.endpoint) != (run.wish.role, run.call.target.endpoint):
                    continue
                problem = f"the secret {secret.name} is for this role on this server already"
                raise ConfigurationError("--name", f"{problem}; write --name {secret.name}")


def _warn(run: Onboarding) -> Iterator[str]:
    tls = warn_about_tls(run.call.target)
    if tls:
        yield tls
    region = find_rds_region(run.call.target.host)
    if region and region != run.vault.region:
        yield (
            f"the server is in {region}, and the secret in {run.vault.region}: a stack reads the"
            " secrets of its own region"
        )
    if run.call.target.host in LOOPBACK:
        yield (
            f"the function cannot reach {run.call.target.host}; write the server's own host and port, and"
            f" --via {run.call.target.host}:{run.call.target.port} if that is a tunnel"
        )
    if run.facts.exists and run.stored is None and not run.wish.iam:
        yield (
            f"the role {run.wish.role} exists, and gets a new password: any other secret with its"
            " password no longer works"
        )


def _is_stored_login_working(run: Onboarding) -> bool:
    """Return whether the login in the secret works; it counts as working unless it is refused."""
    if run.stored is None or run.stored.is_deleted:
        return False
    try:
        found = _parse(run, run.stored.secret)
        if found.auth is Auth.IAM:
            return False
        connect(found).close()
    except TargetError as error:
        return error.code != _WRONG_PASSWORD
    return True


def _parse(run: Onboarding, secret: Secret) -> Target:
    """Return the target of the secret, through the owner's tunnel. Raises TargetError."""
    return replace(parse_secret(secret, whole_clusters=False).target, via=run.call.target.via)


# -- the changes -----------------------------------------------------------------------------------


def _change(run: Onboarding, plan: Plan, standing: Standing) -> None:
    """Change the role and the secret together.

    The secret is written while the role's change is not committed: if one of them fails, both are
    as before, and only the time of one COMMIT lies between them.
    """
    with run.owner.transaction():
        _change_role(run, plan)
        try:
            _write(run, plan, standing)
            _commit(run, plan, standing)
        except BaseException:
            _take_back(run, plan, standing)
            raise
    for notice in run.owner.take_notices():
        run.call.say(f"The server says: {notice}")


def _change_role(run: Onboarding, plan: Plan) -> None:
    try:
        for statement in plan.statements:
            run.owner.run("changing the role", statement.text)
    except TargetError as error:
        hint = _explain_refusal(run, error)
        raise TargetError(error.code, error.cause, hint, step=error.step) from None


def _explain_refusal(run: Onboarding, error: TargetError) -> str:
    """Say what to do about a statement that the server refused."""
    if error.code == _DEPENDENT_OBJECTS:
        return (
            "Revoke the privileges granted to the role, or run this in each database:"
            f" DROP OWNED BY {quote_identifier(run.wish.role)};"
        )
    if error.code != INSUFFICIENT_PRIVILEGE:
        return error.hint
    who = "a superuser, the master user of RDS or Aurora, or Aiven's avnadmin"
    if run.facts.exists and run.facts.version >= _OWNED_ROLES_SINCE:
        who = f"a superuser, or as the role that created {run.wish.role}"
    return f"{run.call.target.role} may not do this. Connect as {who}."


def _write(run: Onboarding, plan: Plan, standing: Standing) -> None:
    """Write the secret, without its tag: the function does not see a new one before it works."""
    if not plan.restores and plan.write is Write.NOTHING:
        return
    standing.secret = State.UNKNOWN
    if plan.restores:
        run.vault.restore()
        found = run.vault.find()
        if found:  # only now can it be read
            require_same_login(found.secret, run.call.target, run.wish.role)
    match plan.write:
        case Write.CREATE:
            run.vault.create(plan.text)
        case Write.PUT:
            run.vault.put(plan.text)
        case Write.DELETE:
            run.vault.delete()
    standing.secret = State.REMOVED if plan.write is Write.DELETE else State.CHANGED


def _commit(run: Onboarding, plan: Plan, standing: Standing) -> None:
    if not plan.statements:
        return
    before = standing.role
    standing.role = State.UNKNOWN
    try:
        run.owner.commit()
    except TargetError as error:
        if not isinstance(error, ConnectionLostError) or not _is_committed(run, plan):
            standing.role = before
            raise
    standing.role = State.REMOVED if plan.is_removal else State.CHANGED


def _is_committed(run: Onboarding, plan: Plan) -> bool:
    """Return whether a commit without an answer took effect, as far as a login can tell."""
    try:
        if plan.is_removal:
            with closing(connect_owner(run.call.target)) as owner:
                return not owner.read_role(run.wish.role).exists
        secret = Secret(name=run.wish.name, arn="", text=plan.text)
        connect(_parse(run, secret)).close()
    except TargetError:
        return False
    return True


def _take_back(run: Onboarding, plan: Plan, standing: Standing) -> None:
    """Undo the change to an existing secret. A new secret stays: the next run uses it."""
    if standing.secret in (State.ABSENT, State.KEPT):
        return
    standing.secret = State.UNKNOWN
    with suppress(ReaperError):  # the first error is raised, and the state stays unknown
        found = run.vault.find()
        if found is None or run.stored is None:
            standing.secret = State.ABSENT if found is None else State.CHANGED
            return
        if plan.restores and not found.is_deleted:
            run.vault.delete()
        elif plan.write is Write.DELETE and found.is_deleted:
            run.vault.restore()
        elif plan.write is Write.PUT and found.version != run.stored.version:
            run.vault.put(run.stored.secret.text)
        standing.secret = State.KEPT


# -- after the changes -----------------------------------------------------------------------------


def _finish(run: Onboarding, plan: Plan) -> ExitStatus:
    """Report the changes and check the new login; if it works, tag the secret."""
    for line in describe_changes(
        plan, run.wish, existed=run.facts.exists, was_stored=run.stored is not None
    ):
        run.call.say(line)
    if plan.is_removal:
        return ExitStatus.DONE
    found = replace(find_secret_target(run.wish.name, Deadline(_SECONDS)), via=run.call.target.via)
    status = _check(run, found)
    if status is ExitStatus.ERROR:
        raise ConfigurationError(f"role {run.wish.role}", "its check failed, as shown above")
    if plan.tag:
        run.vault.tag(plan.tag)
        run.call.say(f"The secret has the tag {plan.tag.key}={plan.tag.value}.")
    for need in describe_needs(run.wish, found.secret_arn):
        run.call.say(need)
    return status


def _check(run: Onboarding, found: Target) -> ExitStatus:
    """Check the server as the function does: with what the secret says."""
    try:
        return run_check(replace(run.call, target=found))
    except TargetError as error:
        if run.wish.iam:
            run.call.say(f"Not checked, because your own token does not log in: {error.message}")
            return ExitStatus.ATTENTION
        problem = f"cannot connect: {error.message}. {error.hint}"
        raise ConfigurationError(f"role {run.wish.role}", problem) from None
