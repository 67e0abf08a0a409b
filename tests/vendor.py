"""Does with the vendor's package what tests/vendor.rs asks.

stdin: a JSON array of orders. stdout: a JSON array with one result for each. An order has the members
sdkappid, key and identifier, and either
    expire, age, userbuf (text or null)   to get a usersig signed `age` seconds ago, or
    usersig                               to have one judged: null if it is good, else what is wrong.
"""
import json
import sys
import time
import zlib

import TLSSigAPIv2 as vendor


class Clock:
    """Stands in for the package's `time` module."""

    def __init__(self, now):
        self.now = now

    def time(self):
        return self.now


def sign(api, order):
    vendor.time = Clock(time.time() - order["age"])
    if order["userbuf"] is None:
        return api.gen_sig(order["identifier"], order["expire"])
    return api.gen_sig_with_userbuf(order["identifier"], order["expire"], order["userbuf"].encode())


def fault(api, order):
    # The package has no verifier; it has the two halves of one.
    text = zlib.decompress(vendor.base64_decode_url(order["usersig"].encode()))
    document = json.loads(text)
    members = {"TLS.ver", "TLS.identifier", "TLS.sdkappid", "TLS.time", "TLS.expire", "TLS.sig"}
    if set(document) != members:
        return "members: %s" % sorted(document)
    if (document["TLS.ver"], document["TLS.sdkappid"], document["TLS.identifier"]) != (
            "2.0", order["sdkappid"], order["identifier"]):
        return "who it is for: %s" % document
    if not (type(document["TLS.time"]) is type(document["TLS.expire"]) is int):
        return "type of its times: %s" % document
    age = time.time() - document["TLS.time"]
    if not -2 <= age < 300:
        return "signed %d seconds ago" % age
    if document["TLS.expire"] <= 300:
        return "lives for %d seconds only" % document["TLS.expire"]
    own = api._TLSSigAPIv2__hmacsha256(order["identifier"], document["TLS.time"], document["TLS.expire"])
    if own.decode() != document["TLS.sig"]:
        return "HMAC differs"
    return None


def main():
    sys.stdin.reconfigure(encoding="utf-8")
    sys.stdout.reconfigure(encoding="utf-8")
    results = []
    for order in json.load(sys.stdin):
        api = vendor.TLSSigAPIv2(order["sdkappid"], order["key"])
        results.append(fault(api, order) if "usersig" in order else sign(api, order))
    json.dump(results, sys.stdout)


main()
