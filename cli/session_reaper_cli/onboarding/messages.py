"""Describes the plan and the changes for people."""

import json
from collections.abc import Iterator

from session_reaper.targets.target import Target

from session_reaper_cli.onboarding.plan import Plan, Wish, Write
from session_reaper_cli.onboarding.secret_text import show_text
from session_reaper_cli.onboarding.vault import RECOVERY_DAYS


def describe_plan(plan: Plan, wish: Wish, owner: Target) -> Iterator[str]:
    """Yield the SQL and the calls to AWS, in their order and without a password."""
    yield f"-- On {owner.host}:{owner.port}, as {owner.role}, in one transaction:"
    yield "BEGIN;"
    for statement in plan.statements:
        yield statement.shown.rstrip().removesuffix(";") + ";"
    for call in _describe_calls(plan, wish.name):
        yield f"-- AWS: {call}"
    yield "COMMIT;"
    if not plan.is_removal:
        yield f"-- Then a check as {wish.role}, with the stored secret."
    if plan.tag:
        tags = json.dumps([{"Key": plan.tag.key, "Value": plan.tag.value}])
        yield f"-- AWS: secretsmanager TagResource SecretId={wish.name} Tags={tags}"


def _describe_calls(plan: Plan, name: str) -> Iterator[str]:
    if plan.restores:
        yield f"secretsmanager RestoreSecret SecretId={name}"
    match plan.write:
        case Write.CREATE:
            text = show_text(plan.text)
            yield f"secretsmanager CreateSecret Name={name} SecretString={text}"
        case Write.PUT:
            text = show_text(plan.text)
            yield f"secretsmanager PutSecretValue SecretId={name} SecretString={text}"
        case Write.DELETE:
            days = f"RecoveryWindowInDays={RECOVERY_DAYS}"
            yield f"secretsmanager DeleteSecret SecretId={name} {days}"


def describe_changes(plan: Plan, wish: Wish, *, existed: bool, was_stored: bool) -> Iterator[str]:
    """Yield the changes that were made, one line for the role and one for the secret."""
    if plan.is_removal:
        yield from _describe_removal(plan, wish, was_stored=was_stored)
        return
    role, secret = wish.role, wish.name
    made = "has the rights and limits of the role's file" if existed else "is created"
    if wish.iam:
        yield f"The role {role} {made}; it logs in by IAM."
    elif plan.is_password_new:
        yield f"The role {role} {made}; it has a new password, which only the secret holds."
    elif plan.sets_password:
        yield f"The role {role} {made}; it has the password of the secret again."
    else:
        yield f"The role {role} {made}; the password in the secret still works."
    yield {
        Write.CREATE: f"The secret {secret} is created.",
        Write.PUT: f"The secret {secret} is changed.",
    }.get(plan.write, f"The secret {secret} is unchanged.")


def _describe_removal(plan: Plan, wish: Wish, *, was_stored: bool) -> Iterator[str]:
    has_role, has_secret = bool(plan.statements), plan.write is Write.DELETE
    yield f"The role {wish.role} {'is dropped' if has_role else 'does not exist'}."
    if has_secret:
        restore = f"`aws secretsmanager restore-secret --secret-id {wish.name}`"
        yield (
            f"The secret {wish.name} is deleted; for {RECOVERY_DAYS} days {restore} restores"
            " it. If the stack names it, remove it from TargetSecretArns and deploy."
        )
    else:
        state = "is deleted already" if was_stored else "does not exist"
        yield f"The secret {wish.name} {state}."


def describe_needs(wish: Wish, arn: str) -> Iterator[str]:
    """Yield what the function still needs from its stack; the check says what it needs here."""
    if wish.tag is None:
        yield (
            "The function still needs the secret: run this again with the stack's --tag, or add"
            f" {arn} to TargetSecretArns and deploy."
        )
    if wish.iam:
        yield f"The function still needs IamDatabaseUser={wish.role}: deploy with it."
