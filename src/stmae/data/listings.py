"""Folders on web servers that say what they hold: the pages that Apache, nginx, Caddy or Python's http.server make."""

from __future__ import annotations

import os
import urllib.parse
from html.parser import HTMLParser

from stmae.data.remote import MissingError, NetworkError, RemoteFile, read_bytes

MOST_FOLDERS = 10_000  # a page of each is fetched
CURE = (
    "Give the address of packed shards (a folder with stmae-pack.json), of tar files "
    "(https://.../shard-{000..127}.tar) or a list file with one address per line."
)


class _Links(HTMLParser):
    """The links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def list_pages(folder: str) -> list[RemoteFile]:
    """The files below an address, at any depth, sorted by the bytes of their names; sizes are not known.

    Raises:
        NetworkError: the server does not list them.
    """
    root = folder.rstrip("/") + "/"
    found: set[str] = set()
    waiting, seen = [""], {""}
    while waiting:
        inside = waiting.pop()
        for name in _names(root + inside, first=not inside):
            if not name.endswith("/"):
                found.add(inside + name)
            elif inside + name not in seen:
                seen.add(inside + name)
                waiting.append(inside + name)
        if len(seen) > MOST_FOLDERS:
            raise NetworkError(f'"{folder}" lists more than {MOST_FOLDERS} folders.', CURE)
    return [RemoteFile(name, 0, "") for name in sorted(found, key=os.fsencode)]


def _names(url: str, first: bool) -> list[str]:
    """The files and, with a slash, the folders that the page of a folder links to."""
    try:
        page = read_bytes(url)
    except NetworkError as error:
        refused = isinstance(error, MissingError) or "may not be read" in str(error)
        if not (first and refused):
            raise
        problem = f'"{url.rstrip("/")}" cannot be listed: the web server does not say what it holds.'
        raise NetworkError(problem, CURE) from None
    links = _Links()
    links.feed(page.decode("utf-8", "replace"))
    here = urllib.parse.unquote(url)
    names = []
    for link in links.found:
        target = urllib.parse.unquote(urllib.parse.urljoin(urllib.parse.quote(here, safe="/:=&~+!$,;'@()*[]"), link))
        name = target.removeprefix(here)
        # Not the links for sorting, to the folder above, or elsewhere.
        if target.startswith(here) and name and "/" not in name[:-1] and not urllib.parse.urlsplit(link).query:
            names.append(name.replace("%", "%25").replace("#", "%23").replace("?", "%3F"))  # as an address has them
    return names
