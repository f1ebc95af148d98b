"""Describes the plan and the changes for people."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from session_reaper.targets.target import Target

from session_reaper_cli.onboarding.owner import RoleFacts
from session_reaper_cli.onboarding.plan import Plan, Wish, Write
from session_reaper_cli.onboarding.secret_text import show_text
from session_reaper_cli.onboarding.vault import RECOVERY_DAYS, StoredSecret


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """The plan, and what it begins with."""

    plan: Plan
    wish: Wish
    facts: RoleFacts
    stored: StoredSecret | None

    def describe_plan(self, owner: Target) -> Iterator[str]:
        """Yield the SQL and the calls to AWS, in their order and without a password."""
        yield f"-- On {owner.host}:{owner.port}, as {owner.role}, in one transaction:"
        yield "BEGIN;"
        for statement in self.plan.statements:
            yield statement.shown.rstrip().removesuffix(";") + ";"
        for call in self._describe_calls():
            yield f"-- AWS: {call}"
        yield "COMMIT;"
        if not self.plan.is_removal:
            yield f"-- Then a check as {self.wish.role}, with the stored secret."
        if self.plan.tag:
            tags = json.dumps([{"Key": self.plan.tag.key, "Value": self.plan.tag.value}])
            yield f"-- AWS: secretsmanager TagResource SecretId={self.wish.name} Tags={tags}"

    def _describe_calls(self) -> Iterator[str]:
        name = self.wish.name
        if self.plan.restores:
            yield f"secretsmanager RestoreSecret SecretId={name}"
        match self.plan.write:
            case Write.CREATE:
                text = show_text(self.plan.text)
                yield f"secretsmanager CreateSecret Name={name} SecretString={text}"
            case Write.PUT:
                text = show_text(self.plan.text)
                yield f"secretsmanager PutSecretValue SecretId={name} SecretString={text}"
            case Write.DELETE:
                days = f"RecoveryWindowInDays={RECOVERY_DAYS}"
                yield f"secretsmanager DeleteSecret SecretId={name} {days}"

    def describe_changes(self) -> Iterator[str]:
        """Yield the changes that were made, one line for the role and one for the secret."""
        if self.plan.is_removal:
            yield from self._describe_removal()
            return
        role, secret = self.wish.role, self.wish.name
        made = "has the rights and limits of the role's file" if self.facts.exists else "is created"
        if self.wish.iam:
            yield f"The role {role} {made}; it logs in by IAM."
        elif self.plan.is_password_new:
            yield f"The role {role} {made}; it has a new password, which only the secret holds."
        elif self.plan.sets_password:
            yield f"The role {role} {made}; it has the password of the secret again."
        else:
            yield f"The role {role} {made}; the password in the secret still works."
        yield {
            Write.CREATE: f"The secret {secret} is created.",
            Write.PUT: f"The secret {secret} is changed.",
        }.get(self.plan.write, f"The secret {secret} is unchanged.")

    def _describe_removal(self) -> Iterator[str]:
        has_role, has_secret = bool(self.plan.statements), self.plan.write is Write.DELETE
        yield f"The role {self.wish.role} {'is dropped' if has_role else 'does not exist'}."
        if has_secret:
            restore = f"`aws secretsmanager restore-secret --secret-id {self.wish.name}`"
            yield (
                f"The secret {self.wish.name} is deleted; for {RECOVERY_DAYS} days {restore} restores"
                " it. If the stack names it, remove it from TargetSecretArns and deploy."
            )
        else:
            state = "is deleted already" if self.stored else "does not exist"
            yield f"The secret {self.wish.name} {state}."

    def describe_needs(self, arn: str) -> Iterator[str]:
        """Yield what the function still needs from its stack; the check says what it needs here."""
        if self.wish.tag is None:
            yield (
                "The function still needs the secret: run this again with the stack's --tag, or add"
                f" {arn} to TargetSecretArns and deploy."
            )
        if self.wish.iam:
            yield f"The function still needs IamDatabaseUser={self.wish.role}: deploy with it."
