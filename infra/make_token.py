#!/usr/bin/env python3
"""Makes an API token: the entry for the token secret, and the token itself, which is shown once and kept nowhere.

    infra/make_token.py ci --scope submit --scope read --namespace training --days 90

The secret then holds {"tokens": [entry, ...]}, at most 200 of them; the functions see a change within 45 seconds. To
rotate a token, add the new entry, hand out the new token, and remove the old entry when nobody uses it any more.

The single token, {"token": "..."}, as the stack makes it, needs nothing of this program. To rotate it, store a new version
of the secret. The token of the version before counts until the next one, so after a leak rotate twice:

    aws secretsmanager put-secret-value --secret-id <TokenSecretArn> \\
        --secret-string '{"token": "'$(openssl rand -hex 32)'"}'
"""

import argparse
import hashlib
import json
import re
import secrets
import sys
from datetime import UTC, datetime, timedelta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("id", type=identifier, help="who uses it; stands on each job and in the functions' log")
    parser.add_argument(
        "--scope",
        action="append",
        choices=["submit", "read"],
        help="what it may do; both unless said (submit: create, replace, cancel, suspend, resume)",
    )
    parser.add_argument(
        "--namespace", action="append", type=namespace, help="where it may do so; every served namespace unless said"
    )
    parser.add_argument("--days", type=days, help="for how many days; for ever unless said")
    arguments = parser.parse_args()

    # 256 bits: nobody can try the values that it might have, so its plain digest can be stored.
    token = secrets.token_urlsafe(32)
    entry = {
        "id": arguments.id,
        "sha256": hashlib.sha256(token.encode()).hexdigest(),
        "scopes": arguments.scope or ["submit", "read"],
    }
    if arguments.namespace:
        entry["namespaces"] = arguments.namespace
    if arguments.days:
        expires_at = datetime.now(UTC) + timedelta(days=arguments.days)
        entry["expires_at"] = expires_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    # The entry alone goes to standard output, so that the token lands in no file with it.
    print(f"token, shown this once: {token}\nentry for the secret:", file=sys.stderr)
    print(json.dumps(entry))


def identifier(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,63}", text):
        raise argparse.ArgumentTypeError("must be 1 to 63 of A-Z a-z 0-9 . _ -")
    return text


def namespace(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError("must be the name of a Kubernetes namespace")
    return text


def days(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 3650:
        raise argparse.ArgumentTypeError("must be a number of days from 1 to 3650")
    return int(text)


if __name__ == "__main__":
    main()
