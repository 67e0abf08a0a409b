"""Runs Tencent's signature package for tests/vendor.rs.

stdin: a JSON array of jobs. stdout: a JSON array with one result per job. A job has the members sdkappid, key, and
identifier, and either
    expire, age, userbuf (text or null)   to sign a UserSig, `age` seconds ago, or
    usersig                               to verify one; the result is null if it is valid, else the error.
"""
import json
import sys
import time
import zlib

import TLSSigAPIv2 as vendor


class Clock:
    """Replaces the package's `time` module."""

    def __init__(self, now):
        self.now = now

    def time(self):
        return self.now


def sign(api, job):
    vendor.time = Clock(time.time() - job["age"])
    if job["userbuf"] is None:
        return api.gen_sig(job["identifier"], job["expire"])
    return api.gen_sig_with_userbuf(job["identifier"], job["expire"], job["userbuf"].encode())


def verify(api, job):
    # The package has no verifier, but both halves of one: decoding and the HMAC.
    text = zlib.decompress(vendor.base64_decode_url(job["usersig"].encode()))
    document = json.loads(text)
    members = {"TLS.ver", "TLS.identifier", "TLS.sdkappid", "TLS.time", "TLS.expire", "TLS.sig"}
    if set(document) != members:
        return "unexpected members: %s" % sorted(document)
    if (document["TLS.ver"], document["TLS.sdkappid"], document["TLS.identifier"]) != (
            "2.0", job["sdkappid"], job["identifier"]):
        return "wrong app or identifier: %s" % document
    if not (type(document["TLS.time"]) is type(document["TLS.expire"]) is int):
        return "times are not integers: %s" % document
    age = time.time() - document["TLS.time"]
    if not -2 <= age < 300:
        return "signed %d seconds ago" % age
    if document["TLS.expire"] <= 300:
        return "expires after only %d seconds" % document["TLS.expire"]
    own = api._TLSSigAPIv2__hmacsha256(job["identifier"], document["TLS.time"], document["TLS.expire"])
    if own.decode() != document["TLS.sig"]:
        return "HMAC differs"
    return None


def main():
    sys.stdin.reconfigure(encoding="utf-8")
    sys.stdout.reconfigure(encoding="utf-8")
    results = []
    for job in json.load(sys.stdin):
        api = vendor.TLSSigAPIv2(job["sdkappid"], job["key"])
        results.append(verify(api, job) if "usersig" in job else sign(api, job))
    json.dump(results, sys.stdout)


main()
