"""Runs requests of tests/vendor.rs with the vendor's package.

stdin: a JSON array of requests. stdout: a JSON array with one result per request. A request has the members
sdkappid, key and identifier, and either
    expire, age, userbuf (text or null)   for a usersig signed `age` seconds ago, or
    usersig                               to verify one: null if it is valid, otherwise the error.
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


def sign(api, request):
    vendor.time = Clock(time.time() - request["age"])
    if request["userbuf"] is None:
        return api.gen_sig(request["identifier"], request["expire"])
    return api.gen_sig_with_userbuf(request["identifier"], request["expire"], request["userbuf"].encode())


def verify(api, request):
    # The package has no verifier, but it has the decoder and the HMAC.
    text = zlib.decompress(vendor.base64_decode_url(request["usersig"].encode()))
    document = json.loads(text)
    members = {"TLS.ver", "TLS.identifier", "TLS.sdkappid", "TLS.time", "TLS.expire", "TLS.sig"}
    if set(document) != members:
        return "members: %s" % sorted(document)
    if (document["TLS.ver"], document["TLS.sdkappid"], document["TLS.identifier"]) != (
            "2.0", request["sdkappid"], request["identifier"]):
        return "signer: %s" % document
    if not (type(document["TLS.time"]) is type(document["TLS.expire"]) is int):
        return "type of the times: %s" % document
    age = time.time() - document["TLS.time"]
    if not -2 <= age < 300:
        return "signed %d seconds ago" % age
    if document["TLS.expire"] <= 300:
        return "valid for only %d seconds" % document["TLS.expire"]
    own = api._TLSSigAPIv2__hmacsha256(request["identifier"], document["TLS.time"], document["TLS.expire"])
    if own.decode() != document["TLS.sig"]:
        return "HMAC differs"
    return None


def main():
    sys.stdin.reconfigure(encoding="utf-8")
    sys.stdout.reconfigure(encoding="utf-8")
    results = []
    for request in json.load(sys.stdin):
        api = vendor.TLSSigAPIv2(request["sdkappid"], request["key"])
        results.append(verify(api, request) if "usersig" in request else sign(api, request))
    json.dump(results, sys.stdout)


main()
