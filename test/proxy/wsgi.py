"""The same application for WSGI, as Django and Flask run: wsgi.py PORT DATABASE."""

import json
import signal
import sqlite3
import sys
from socketserver import ThreadingMixIn
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

port, path = sys.argv[1:3]


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128


class Handler(WSGIRequestHandler):
    def log_message(self, *args):
        pass


def application(environ, start_response):
    headers = [("Content-Type", "application/json")]
    try:
        with sqlite3.connect(path, timeout=5) as db:
            if environ["REQUEST_METHOD"] == "GET":
                body = {"port": port, "last": db.execute("SELECT max(id) FROM entries").fetchone()[0]}
            else:
                value = parse_qs(environ["QUERY_STRING"])["value"][0]
                body = {"port": port, "id": db.execute("INSERT INTO entries (value) VALUES (?)", (value,)).lastrowid}
        db.close()
        start_response("200 OK", headers)
    except sqlite3.Error as error:
        body = {"error": str(error)}
        start_response("500 Internal Server Error", headers)
    return [json.dumps(body).encode()]


signal.signal(signal.SIGTERM, lambda *args: sys.exit(0))
make_server("127.0.0.1", int(port), application, Server, Handler).serve_forever()
