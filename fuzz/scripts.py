"""Targets: the parsers of package scripts and service scripts."""

from __future__ import annotations

import io
from collections.abc import Mapping

from fuzz.roots import ACCOUNTS, tree_with
from fuzz.target import Target
from imgkit.errors import InputError
from imgkit.rootfs.openrc import depends
from imgkit.rootfs.scripts.budget import Budget, Exhausted
from imgkit.rootfs.scripts.effects import Unsupported, run_script
from imgkit.rootfs.scripts.patterns import shell_pattern
from imgkit.rootfs.scripts.regex import compile_expressions


def _script(data: bytes) -> None:
    tree = tree_with({**ACCOUNTS, "etc/conf.d/x": b"y=1\n"})
    tree.symlink("bin/sh", "/bin/busybox")
    text = "#!/bin/sh\n" + data.decode(errors="surrogateescape")
    run_script(tree, text, package="p", kind="post-install", args=["1.0-r0"], epoch=1_700_000_000)
    tree.write_tar(io.BytesIO())


_SCRIPTS = (
    b"set -eu\naddgroup -S -g 82 web 2>/dev/null\nadduser -SDH -h /x -s /bin/false -G web -g web web || exit 0\n",
    b"for i in /etc/*; do case \"$i\" in *.conf|*/m[a-z]td) echo ${i##*/} ${i%.*} >>/tmp/l;; esac; done\n",
    b"cat <<EOF | grep -qE '^(a|b)+[[:digit:]]*$' && ln -sf a b\na$1 `id -u bin` $(basename /a/b .c)\nEOF\n",
    b"f() { local x=\"${1:-y}\"; [ -e \"$x\" -a ! -d $x ] || return 3; }; f /etc/passwd\n"
    b"while read a b; do :; done </etc/group\n",
    b"find /etc -name '*s*' -type f -exec chmod 600 {} \\; -o -print | sort -t / -k 2n | cut -d/ -f1,3- | head -n 2\n",
    b"printf '%-5s|%03d\\n' a 1; umask 022; mkdir -p -m 700 a/b; cp -a a c; mv c/b d\n"
    b"chown -R root:wheel a; rm -rf a\n",
    b"export A=b; . /etc/conf.d/x; set -- \"$@\" x; shift; until false; do break; done; { ls -a / & wait; } 2>&1\n",
)  # fmt: skip
_SHELL_WORDS = tuple(
    b"if;then;else;elif;fi;for;in;do;done;case;esac;while;until;{;};(;);;;&&;||;|;&;$(;`;${;##;%%;:-;:=;<<E\n;E\n;>;>>;"
    b"2>&1;<;\";';\\;$@;$*;$#;$?;$1;*;?;[!a];[[:alpha:]];..;/;-e;-R;grep -E;grep -w;cut -d: -f;sort -V;find . ;"
    b"-exec;{} +;\\;printf ;%5s;echo -e;head -n;test ;[ ;adduser -D;rc-update add;update-ca-certificates;"
    b"depmod -a;mkinitfs -o;busybox --install -s;getent passwd;id -Gn;install -D;chpasswd -e;();{255};"
    b"[a-\xe4\xb8\x80];chmod -R u+x".split(b";")
)


def _regex(data: bytes) -> None:
    """Match a regular expression.

    The first byte sets the options of grep; the expression ends at the first newline, and the text follows.
    """
    settings = data[0] if data else 0
    pattern, _, text = data[1:].decode(errors="surrogateescape").partition("\n")
    budget = Budget()
    compiled = compile_expressions(
        [pattern],
        budget,
        extended=bool(settings & 1),
        ignore_case=bool(settings & 2),
        around=(None, ("^", "$"), ("before", "after"), None)[settings >> 2 & 3],
    )
    compiled.search(text, budget)
    shell_pattern(pattern, budget, pathname=bool(settings & 1), ignore_case=bool(settings & 2)).fullmatch(text)


_REGEXES = (
    b"1^(a|b)+[[:digit:]]*$\naab12",
    b"0^\\(x*\\)\\{2,3\\}\\<y\\>\\|z\nxx y",
    b"3([a-\xe4\xb8\x80]?){3}()*\nA",
    b"9\\w+ ?\\S\none two",
)
_REGEX_WORDS = tuple(
    b"();{255};{0};{1,};(;);|;*;+;?;^;$;.;\\(;\\);\\{9\\};\\<;\\b;[^;[!a];-;];[[:alpha:]];\n".split(b";")
)


def _service(data: bytes) -> None:
    tree = tree_with({"etc/init.d/one": b"#!/sbin/openrc-run\n" + data, "etc/fstab": b"a /b ext4 rw 0 1\n"})
    depends.declarations(tree)


_SERVICES = (
    b"name=x\ndepend() {\n\tneed net a\n\tafter *\n\tkeyword -lxc\n}\nstart() {\n\tfoo $((1))\n}\nrc_need=b\n",
)

_SERVICE_WORDS = (*_SHELL_WORDS, b"depend() {\n", b"\n}\n", b"need ")

TARGETS: Mapping[str, Target] = {
    "script": Target(_script, (Unsupported, InputError), lambda: _SCRIPTS, _SHELL_WORDS),
    "regex": Target(_regex, (ValueError, Exhausted, RecursionError), lambda: _REGEXES, _REGEX_WORDS),
    "service": Target(_service, (Unsupported,), lambda: _SERVICES, _SERVICE_WORDS),
}
