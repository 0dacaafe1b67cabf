"""Webhooks that any library of standardwebhooks.com can verify, with a secret that both sides know.

WEBHOOK_SECRET is `whsec_` and at least 24 bytes in base64:

    python -c 'import base64, os; print("whsec_" + base64.b64encode(os.urandom(32)).decode())'

During a change of secrets give the old one too, separated by a space: both signatures are sent. The signature is an
HMAC-SHA256 of `id.timestamp.body`, so neither an old message nor a changed one passes for a new one.
"""

import base64
import binascii
import hashlib
import hmac
import os
import time

import runner


def keys_of(secrets):
    try:
        keys = [base64.b64decode(secret.removeprefix("whsec_"), validate=True) for secret in secrets.split()]
    except binascii.Error:
        keys = []
    if not keys or min(map(len, keys)) < 24:
        raise runner.ConfigError("WEBHOOK_SECRET is whsec_ and 24 bytes or more in base64; the top of signed_webhooks.py has a line that makes one")
    return keys


@runner.hookimpl
def sign_webhooks(service):
    keys = keys_of(os.environ.get("WEBHOOK_SECRET", ""))

    def sign(job_id, body):
        when = str(int(time.time()))
        signed = b".".join((job_id.encode(), when.encode(), body))
        signatures = (base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys)
        return {"webhook-id": job_id, "webhook-timestamp": when, "webhook-signature": " ".join(f"v1,{s}" for s in signatures)}

    return sign
