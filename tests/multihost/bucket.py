"""A bucket of Google Cloud Storage on this machine: an HTTP server for Orbax (tensorstore), and fsspec's file system over it.

It has what makes a bucket no disk: an object appears whole when it is closed, a file that is opened to append to is made anew
(as by gcsfs), folders exist by their objects, nothing is renamed, and a listing is remembered unless fsspec is told not to.
"""

import contextlib
import io
import json
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
from orbax.checkpoint._src.path import gcs_utils

ENDPOINT = "TENSORSTORE_GCS_HTTP_URL"  # where tensorstore, and the file system below, look for Google


class Handler(BaseHTTPRequestHandler):
  """The part of the JSON API that tensorstore uses."""

  protocol_version = "HTTP/1.1"

  def do_GET(self):
    name, query = self._parse()
    objects = self.server.objects
    if name is None:
      prefix = query.get("prefix", "")
      listed = [{"name": key, "size": str(len(objects[key][1])), "generation": str(objects[key][0])} for key in sorted(objects)]
      items = [item for item in listed if item["name"].startswith(prefix)]
      return self._send(200, json.dumps({"items": items}).encode())
    if name not in objects:
      return self._send(404, b"{}")
    generation, data = objects[name]
    if self.headers.get("Range"):
      first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
      start = int(first) if first else len(data) - int(last)
      stop = int(last) + 1 if first and last else len(data)
      headers = {"Content-Range": f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"}
      return self._send(206, data[start:stop], generation, headers)
    return self._send(200, data, generation)

  def do_POST(self):
    _, query = self._parse()
    data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
    objects, name = self.server.objects, query["name"]
    with self.server.lock:
      wanted = query.get("ifGenerationMatch")
      if wanted is not None and int(wanted) != objects.get(name, (0,))[0]:
        return self._send(412, b"{}")
      self.server.generation += 1
      objects[name] = (self.server.generation, data)
    found = {"name": name, "generation": str(objects[name][0]), "size": str(len(data))}
    return self._send(200, json.dumps(found).encode())

  def do_DELETE(self):
    name, _ = self._parse()
    return self._send(404 if self.server.objects.pop(name, None) is None else 204, b"")

  def log_message(self, *_):
    pass

  def _parse(self):
    """(object or None, query) of the request's path."""
    url = urllib.parse.urlsplit(self.path)
    name = urllib.parse.unquote(url.path.partition("/o/")[2]) or None
    return name, dict(urllib.parse.parse_qsl(url.query))

  def _send(self, code, data, generation=None, headers=None):
    self.send_response(code)
    self.send_header("Content-Length", str(len(data)))
    for key, value in ({"x-goog-generation": str(generation)} if generation else {}).items() | (headers or {}).items():
      self.send_header(key, value)
    self.end_headers()
    self.wfile.write(data)


class Bucket(fsspec.AbstractFileSystem):
  """fsspec's file system of gs://, as far as a path of etils asks it."""

  protocol = ("gs", "gcs")
  cachable = False
  appended: list[str] = []  # files that were opened to append to

  def ls(self, path, detail=True, **_):
    key = self._strip_protocol(path)
    if key not in self.dircache:
      found = self._list(path)
      self.dircache[key] = found
    else:
      found = self.dircache[key]
    return found if detail else [item["name"] for item in found]

  def _list(self, path):
    bucket, _, inside = self._strip_protocol(path).strip("/").partition("/")
    prefix = f"{inside}/" if inside else ""
    found = {}
    for item in _request("GET", f"/storage/v1/b/{bucket}/o?prefix={urllib.parse.quote(prefix)}")["items"]:
      head, slash, _ = item["name"].removeprefix(prefix).partition("/")
      full = f"{bucket}/{prefix}{head}"
      found[full] = {"name": full, "size": 0 if slash else int(item["size"]), "type": "directory" if slash else "file"}
    if not found:
      own = [item for item in self.ls(self._parent(path)) if item["name"] == self._strip_protocol(path)] if inside else []
      if not own:
        raise FileNotFoundError(path)
      found = {own[0]["name"]: own[0]}
    return list(found.values())

  def _open(self, path, mode="rb", **_):
    bucket, _, name = self._strip_protocol(path).partition("/")
    name = urllib.parse.quote(name, safe="")
    if mode == "rb":
      return io.BytesIO(_request("GET", f"/storage/v1/b/{bucket}/o/{name}?alt=media", raw=True))
    if mode == "ab":
      self.appended.append(path)
    return _Upload(f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}")

  def _rm(self, path):
    bucket, _, name = self._strip_protocol(path).partition("/")
    _request("DELETE", f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}", raw=True)

  def rm(self, path, recursive=False, maxdepth=None):
    for name in self.find(path) if recursive else [path]:
      self._rm(name)

  def cp_file(self, path1, path2, **_):
    with self.open(path1) as source, self.open(path2, "wb") as target:
      target.write(source.read())

  def mkdir(self, path, create_parents=True, **_):
    pass

  def makedirs(self, path, exist_ok=False):
    pass


class _Upload(io.BytesIO):
  """A file that is an object once it is closed."""

  def __init__(self, where):
    super().__init__()
    self._where = where

  def close(self):
    if not self.closed:
      _request("POST", self._where, self.getvalue())
    super().close()


def _request(method, path, data=None, raw=False):
  request = urllib.request.Request(os.environ[ENDPOINT] + path, data=data, method=method)
  try:
    with urllib.request.urlopen(request) as response:
      found = response.read()
  except urllib.error.HTTPError as error:
    raise FileNotFoundError(path) from error
  return found if raw else json.loads(found)


@contextlib.contextmanager
def serving() -> Generator[dict[str, tuple[int, bytes]]]:
  """Serves gs:// to this process and to those that it starts; yields the objects by name, each (generation, bytes)."""
  server = ThreadingHTTPServer(("localhost", 0), Handler)
  server.objects, server.generation, server.lock = {}, 0, threading.Lock()
  os.environ |= {ENDPOINT: f"http://localhost:{server.server_port}", "GOOGLE_AUTH_TOKEN_FOR_TESTING": "a"}
  threading.Thread(target=server.serve_forever, daemon=True).start()
  Bucket.appended.clear()
  register()
  try:
    yield server.objects
  finally:
    server.shutdown()
    server.server_close()


def register() -> None:
  """Makes fsspec take this for gs://; and Orbax not ask Google's own library of what kind the bucket is."""
  for name in Bucket.protocol:
    fsspec.register_implementation(name, Bucket, clobber=True)
  gcs_utils.is_hierarchical_namespace_enabled = lambda _: False
