"""Runs public SDKs of the server API for tests/vendor/sdks.rs.

stdin: a JSON array of jobs. stdout: a JSON array with one result per job. A job has the members sdk, sdkappid, key, and
identifier, and either
    url     base URL, for SDKs that have one, or
    port    where console.tim.qq.com is, as an entry in the hosts file would say, for the others.
A result is the response's JSON with the member status, or {"raised": TEXT}. Each job imports a user, reads its online
state, and checks it with a GET where the SDK uses one.
"""
import json
import socket
import sys

DOMAIN = "console.tim.qq.com"
resolve = socket.getaddrinfo


def redirect(port):
    """Resolves DOMAIN to this machine, and its port to another one, which an unprivileged test can listen on."""
    def getaddrinfo(host, service, *args, **kwargs):
        if host == DOMAIN:
            host, service = "127.0.0.1", port
        return resolve(host, service, *args, **kwargs)
    socket.getaddrinfo = getaddrinfo


def outcome(call):
    try:
        result = call()
    except Exception as error:
        return {"raised": str(error)}
    if isinstance(result, dict):
        return dict(result, status=200)
    if result is None:
        return {"raised": "logged, and returned None"}
    return dict(result.json(), status=result.status_code)


def tencentcloud(job):
    from tencentcloud_im.tcim_client import TCIMClient
    if "url" in job:
        client = TCIMClient(job["sdkappid"], job["key"], job["identifier"], job["url"])
    else:
        redirect(job["port"])
        client = TCIMClient(job["sdkappid"], job["key"], job["identifier"])
    return [
        outcome(lambda: client.add_single_user("ann", "Ann", "")),
        outcome(lambda: client.check_user_online(["ann"])),
    ]


def timsdk(job):
    from timsdk.tim_client import TimClient
    redirect(job["port"])
    client = TimClient(job["sdkappid"], job["key"], job["identifier"])
    return [
        outcome(lambda: client.im_open_login_svc.account_import("ann", "Ann")),
        outcome(lambda: client.im_open_login_svc.account_check(["ann"])),
    ]


def main():
    results = [{"tencentcloud": tencentcloud, "timsdk": timsdk}[job["sdk"]](job) for job in json.load(sys.stdin)]
    json.dump(results, sys.stdout)


main()
