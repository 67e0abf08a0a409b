"""Reads HTTP/1 connections with h11 and with llhttp (of httptools), for tests/corpus/peers.rs.

Standard input: an array of connections, each a string with one character per byte. Standard output: an object for each,
with the result of each reader:

- `requests`: an array of [method, target, values of Host, body]; the body is null if it is incomplete.
- `end`: "error: ..." if the reader rejects the next bytes, "closed" if it ends the connection after the last request,
  "upgraded" if it leaves what follows the headers of the last request to another protocol, and "open" if it waits for
  more bytes.
"""

import json
import sys

import h11
import httptools

# As chatgate's limit of request headers.
HEAD_LEN_MAX = 64 * 1024


def text(data):
    return data.decode("latin-1")


def read_with_h11(data):
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LEN_MAX)
    requests = []
    end = "open"
    body = b""
    connection.receive_data(data)
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                break
            if event is h11.PAUSED:
                connection.start_next_cycle()
            elif isinstance(event, h11.Request):
                hosts = [text(value) for name, value in event.headers if name == b"host"]
                requests.append([text(event.method), text(event.target), hosts, None])
                body = b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                requests[-1][3] = text(body)
                # Not a success, because CONNECT would become a tunnel.
                connection.send(h11.Response(status_code=404, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.MUST_CLOSE or connection.their_state is h11.MUST_CLOSE:
                    end = "closed"
                    break
            elif isinstance(event, h11.ConnectionClosed):
                end = "closed"
                break
    except h11.RemoteProtocolError as error:
        end = "error: " + str(error)
    return {"requests": requests, "end": end}


class Collector:
    """Receives what llhttp finds."""

    def __init__(self):
        self.requests = []
        self.parser = None
        self.is_closed = False
        self.on_message_begin()

    def on_message_begin(self):
        self.target = b""
        self.hosts = []
        self.in_trailers = False
        self.body = b""

    def on_url(self, data):
        self.target += data

    def on_header(self, name, value):
        if name.lower() == b"host" and not self.in_trailers:
            # Only the end of a value keeps its spaces, which are not a part of it (RFC 9112 section 5).
            self.hosts.append(text(value.strip(b" \t")))

    def on_headers_complete(self):
        self.requests.append([text(self.parser.get_method()), text(self.target), self.hosts, None])
        self.in_trailers = True

    def on_body(self, data):
        self.body += data

    def on_message_complete(self):
        self.requests[-1][3] = text(self.body)
        self.is_closed = not self.parser.should_keep_alive()


def read_with_llhttp(data):
    collector = Collector()
    collector.parser = httptools.HttpRequestParser(collector)
    end = "open"
    try:
        collector.parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        end = "upgraded"
    except httptools.HttpParserError as error:
        end = "error: " + str(error)
    if collector.is_closed and end != "upgraded":
        end = "closed"
    return {"requests": collector.requests, "end": end}


def read(connection):
    data = connection.encode("latin-1")
    return {"h11": read_with_h11(data), "llhttp": read_with_llhttp(data)}


json.dump([read(connection) for connection in json.load(sys.stdin)], sys.stdout)
