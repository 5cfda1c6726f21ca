"""Compute what OpenRC's service scripts declare: the facts that OpenRC's gendepends.sh collects at every boot.

The interpreter of package scripts reads the configuration of a service, then its script, and calls the script's
``depend``. Functions that are called only when the service starts are defined, but never run. A script that depends on
a running system is refused, because OpenRC would use a wrong cache at every boot.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from imgkit.rootfs.openrc.services import INIT
from imgkit.rootfs.scripts.budget import MAX_BYTES, MAX_STEPS, Budget, Exhausted
from imgkit.rootfs.scripts.control import Jump, Leave
from imgkit.rootfs.scripts.shellprogram import Shell
from imgkit.rootfs.scripts.state import Failed, ShellState, Streams, options
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import File, LazyCopy, Tree

_CONF = "etc/conf.d"
_SETTINGS = "etc/rc.conf"
_MORE_SETTINGS = "etc/rc.conf.d"
_WATCHED = (INIT, _CONF, _SETTINGS, _MORE_SETTINGS)
_ELSEWHERE = ("usr/local/etc/init.d", "usr/local/etc/conf.d")  # OpenRC may look there too
_RUNNER = re.compile(r"#!\s*\S*/(openrc-run|runscript)(\s|$)")
_KINDS = {
    "config": "config",
    "need": "ineed",
    "use": "iuse",
    "want": "iwant",
    "after": "iafter",
    "before": "ibefore",
    "provide": "iprovide",
    "keyword": "keyword",
}
# The head of a function of several lines, as service scripts write them. Only depend is ever read.
_FUNCTION = re.compile(r"^(?!depend\b)(\w+)[ \t]*\(\)\s*\{[ \t]*(?:#[^\n]*)?\n", re.MULTILINE)
_INSIDE = re.compile(r"^(\w+[ \t]*\(\)|\s*depend[ \t]*\()", re.MULTILINE)
_PURE = frozenset({"[", "echo", "false", "printf", "test", "true"})  # commands whose result depends on files only
_VARIABLES = {
    "RC_UNAME": "Linux",
    "RC_LIBEXECDIR": "/usr/libexec/rc",
    "RC_SVCDIR": "/run/openrc",
}  # OpenRC sets these for every script
_MAX_SCRIPT = 256 << 10  # bytes of a service script
_BUDGETS = 4  # all services together may cost this many times as much as a package script
_MAX_NAMES = 200  # that one service may declare; Alpine's services declare a dozen
_MAX_SERVICES = 1000
_YES = frozenset({"yes", "true", "on", "1"})


@dataclass(frozen=True)
class ServiceDeclaration:
    """What a service script declares: (``ineed``, ``iuse`` …, the names that follow), in the order of the calls."""

    name: str
    declared: tuple[tuple[str, tuple[str, ...]], ...]


class _StaticFiles(ShellState):
    """The files of an image that is not running."""

    def path(self, text: str, *, follow: bool = True) -> str:
        """Return the Tree's path as the base class does; /run is refused."""
        path = super().path(text, follow=follow)
        if path.startswith("run/"):
            raise Unsupported(f"use of /{path}, which only a running system has")
        return path


class _ServiceShell(Shell):
    """The shell that gendepends.sh gives to a service script."""

    def __init__(self, state: ShellState, name: str) -> None:
        super().__init__(state, (), {"RC_SERVICE": name, "RC_SVCNAME": name, "SVCNAME": name, **_VARIABLES})
        self.name = name
        self.declared: list[tuple[str, tuple[str, ...]]] = []

    def external(self, name: str, arguments: list[str], streams: Streams) -> int:
        """Run a program. Only those are allowed whose result does not depend on a running system."""
        if name in _KINDS:
            return self._declare_dependency(name, arguments)
        if name == "yesno":
            return self._yesno(arguments)
        if name == "fstabinfo":
            return _fstabinfo(self.state, arguments, streams)
        if name not in _PURE:
            raise Unsupported(f"the command {name}")
        return super().external(name, arguments, streams)

    def value(self, name: str) -> str | None:
        """Return a variable. OpenRC's own that are not set here are refused: a running OpenRC may set them."""
        if name.startswith("RC_") and name not in self.variables:
            raise Unsupported(f"the variable {name}")
        return super().value(name)

    def source(self, arguments: list[str], streams: Streams) -> int:
        """Read another script; one that cannot be read is refused, because it ends a real shell."""
        try:
            return self.read(self.state.read(arguments[0]), streams)
        except (Failed, IndexError) as cause:
            raise Unsupported(f". {' '.join(arguments)}") from cause

    def read(self, text: str, streams: Streams) -> int:
        """Run a file; the bodies of its functions are not read."""
        return self.run_text(_without_functions(text), streams)

    def _declare_dependency(self, name: str, arguments: Sequence[str]) -> int:
        """Run ``need``, ``use`` and similar functions of a service script."""
        if any(word.endswith("-containers") for word in arguments):
            raise Unsupported(f"{name} {' '.join(arguments)}")
        words = tuple(word for argument in arguments for word in argument.split())
        if len(words) + sum(len(names) for _, names in self.declared) > _MAX_NAMES:
            raise Unsupported(f"more than {_MAX_NAMES} names")
        if not words:
            return 1
        self.declared.append((_KINDS[name], words))
        return 0

    def _yesno(self, arguments: Sequence[str]) -> int:
        """Run ``yesno`` with a value, or with the name of a variable that has one (OpenRC's functions.sh)."""
        value = arguments[0] if arguments else ""
        known = value.lower() in _YES or value.lower() in ("no", "false", "off", "0")
        return int((value if known else self.variables.get(value, "")).lower() not in _YES)

    def add_configured(self) -> None:
        """Add the dependencies that the configuration states: ``rc_need``, ``rc_use`` and so on."""
        own = re.sub(r"[^A-Za-z0-9]", "_", self.name)
        for kind in _KINDS:
            names = (f"rc_{own}_{kind}", f"rc_{kind}", f"RC_{own}_{kind.upper()}", f"RC_{kind.upper()}")
            value = next(filter(None, map(self.variables.get, names)), "")
            if set(value) & set("*?["):
                raise Unsupported(f"the pattern {value} for {kind}")
            self._declare_dependency(kind, [value])


def _fstabinfo(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``fstabinfo -o -t TYPE,…``, which prints the mount options of the filesystems of these types."""
    flags, operands = options(arguments, "ot:")
    if "t" not in flags or "o" not in flags or operands:
        raise Unsupported(f"fstabinfo {' '.join(arguments)}")
    entries = [line.split() for line in state.read("/etc/fstab").splitlines()]
    types = flags["t"].split(",")
    matching = [entry for entry in entries if len(entry) > 3 and entry[0][0] != "#" and entry[2] in types]
    for entry in matching:
        streams.out(f"{entry[3]}\n")
    return int(not matching)


def watched(tree: Tree) -> Iterator[str]:
    """Yield the paths that exist of those that OpenRC watches: it computes the dependencies anew if one is newer."""
    for path in _WATCHED:
        if path in tree:
            yield path
            yield from tree.children(path)


def declarations(tree: Tree) -> list[ServiceDeclaration]:
    """Return what the services of ``tree`` declare, in the order of their names.

    Raises:
        Unsupported: a script does something that is not computed here, or there are too many or too large scripts.
    """
    for path in _ELSEWHERE:
        if path in tree:
            raise Unsupported(f"services in /{path}")
    if tree.count(INIT) > _MAX_SERVICES:
        raise Unsupported(f"more than {_MAX_SERVICES} services")
    services = []
    budget = Budget(_BUDGETS * MAX_STEPS, _BUDGETS * MAX_BYTES)
    for path in _listed(tree, INIT):
        node = tree.stat(path)
        if isinstance(node, File) and node.mode & 0o111:
            name = path.rpartition("/")[2]
            if node.content.size > _MAX_SCRIPT:
                raise Unsupported(f"/{path}, which has more than {_MAX_SCRIPT >> 10} KiB")
            text = tree.text(tree.resolve(path))
            if _RUNNER.match(text):
                services.append(_service(tree, name, text, budget))
    return services


def _service(tree: Tree, name: str, text: str, budget: Budget) -> ServiceDeclaration:
    """Compute what one service script declares."""
    files = _StaticFiles(LazyCopy(tree), cwd=f"/{INIT}", budget=budget)  # there, "after *" is after all services
    shell = _ServiceShell(files, name)
    streams = Streams(io.StringIO(), _ignore, _ignore)
    try:
        for path in _configuration(tree, name):
            shell.read(files.read(f"/{path}"), streams)
        if shell.read(text, streams) != 0:
            raise Unsupported("a script that fails")
        if shell.variables.get("supervisor") == "s6":
            raise Unsupported("the supervisor s6")
        if "depend" in shell.functions:
            shell.call(["depend"], streams)
        shell.add_configured()
    except Unsupported as cause:
        raise Unsupported(cause.construct, line=cause.line or shell.line, where=f"/{INIT}/{name}") from cause
    except Exhausted as cause:
        raise Unsupported(f"the script {cause}", line=shell.line, where=f"/{INIT}/{name}") from cause
    except (Leave, Jump, Failed, RecursionError) as cause:
        raise Unsupported("a script that ends early", line=shell.line, where=f"/{INIT}/{name}") from cause
    return ServiceDeclaration(name, tuple(shell.declared))


def _without_functions(text: str) -> str:
    """Return ``text`` with its functions replaced by functions that refuse to be called."""
    pieces = []
    done = 0
    while head := _FUNCTION.search(text, done):
        end = text.find("\n}", head.start())
        if end == -1:
            break
        pieces += [text[done : head.start()], _refusing_function(head[1], text[head.start() : end + 1])]
        done = end + len("\n}")
    return "".join([*pieces, text[done:]])


def _refusing_function(name: str, text: str) -> str:
    """Return a function that refuses to be called, with as many lines as the original.

    Args:
        name: the name of the function.
        text: the original without its last line.

    Raises:
        Unsupported: the original does not end where it seems to, so that ``text`` has another function in it.
    """
    if _INSIDE.search(text, text.index("\n")):
        raise Unsupported(f"the function {name} without an end in the first column")
    return f"{name}() {{ {name}-of-the-service; }}" + "\n" * text.count("\n")


def _configuration(tree: Tree, name: str) -> list[str]:
    """Return the files that OpenRC reads before a script, in this order."""
    base = name.partition(".")[0]
    paths = [f"{_CONF}/{base}"] if base and base != name else []
    paths += [f"{_CONF}/{name}", _SETTINGS]
    if _MORE_SETTINGS in tree:
        paths += [path for path in _listed(tree, _MORE_SETTINGS) if path.endswith(".conf")]
    return [path for path in paths if isinstance(tree.stat(path), File)]


def _listed(tree: Tree, folder: str) -> list[str]:
    """Return what ``*`` matches in a folder."""
    return sorted(path for path in tree.children(folder) if not path.rpartition("/")[2].startswith("."))


def _ignore(_: str) -> None:
    """Drop the output of a script."""
