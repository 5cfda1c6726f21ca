"""Users and groups in the Tree; expectations were measured with busybox 1.37's adduser and addgroup in a chroot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkit.rootfs import accounts
from imgkit.rootfs.accounts import AccountError
from imgkit.tree import Directory, File, Inline, Tree

DAY = 20777
EPOCH = DAY * 86400 + 5


def base() -> Tree:
    tree = Tree()
    tree.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndhcpcd:x:100:101:dhcpcd:/var/lib/dhcpcd:/sbin/nologin\n")
    tree.write(
        "etc/group", "root:x:0:root\nwheel:x:10:root\nusers:x:100:games\nnogroup:x:65533:\ndhcpcd:x:101:dhcpcd\n"
    )
    tree.write("etc/shadow", "root:*::0:::::\ndhcpcd:!:20740:0:99999:7:::\n", mode=0o640)
    tree.change("etc/shadow", gid=42)
    tree.mkdir("home")
    return tree


def test_system_group_takes_the_smallest_free_number_from_100() -> None:
    tree = base()
    assert accounts.add_group(tree, "one", system=True).gid == 102
    assert accounts.add_group(tree, "two").gid == 1000
    assert accounts.add_group(tree, "three", gid=150).gid == 150
    assert tree.text("etc/group").endswith("one:x:102:\ntwo:x:1000:\nthree:x:150:\n")


def test_system_user_with_a_group_is_listed_in_it() -> None:
    tree = base()
    accounts.add_group(tree, "klogd", system=True)
    accounts.add_user(
        tree, "klogd", group="klogd", home="/dev/null", shell="/sbin/nologin", gecos="klogd", system=True, epoch=EPOCH
    )
    assert tree.text("etc/passwd").endswith("klogd:x:101:102:klogd:/dev/null:/sbin/nologin\n")
    assert tree.text("etc/group").endswith("klogd:x:102:klogd\n")
    assert tree.text("etc/shadow").endswith(f"klogd:!:{DAY}:0:99999:7:::\n")


def test_system_user_without_a_group_goes_into_nogroup() -> None:
    tree = base()
    accounts.add_user(tree, "lonely", system=True, epoch=EPOCH)
    assert tree.text("etc/passwd").endswith("lonely:x:101:65533::/home/lonely:/sbin/nologin\n")
    assert "nogroup:x:65533:lonely\n" in tree.text("etc/group")


def test_ordinary_user_gets_a_group_with_the_same_free_number() -> None:
    tree = base()
    accounts.add_group(tree, "taken", gid=1000)
    user = accounts.add_user(tree, "person", epoch=EPOCH)
    assert (user.uid, user.gid, user.shell) == (1001, 1001, "/bin/sh")
    assert tree.text("etc/group").endswith("person:x:1001:\n")


def test_home_is_made_with_the_skeleton() -> None:
    tree = base()
    tree.write("etc/skel/.profile", "hi\n")
    accounts.add_user(tree, "person", make_home=True)
    assert tree["home/person"] == Directory(mode=0o2755, uid=1000, gid=1000)
    profile = tree["home/person/.profile"]
    assert isinstance(profile, File)
    assert (profile.uid, profile.gid, profile.mode) == (1000, 1000, 0o644)


def test_existing_home_is_taken_over_and_gets_no_skeleton() -> None:
    tree = base()
    tree.write("etc/skel/file", "x")
    tree.mkdir("srv/data", mode=0o700)
    accounts.add_user(tree, "person", home="/srv/data", make_home=True)
    assert tree["srv/data"] == Directory(mode=0o2755, uid=1000, gid=1000)
    assert tree.children("srv/data") == []


def test_home_below_a_missing_directory_is_not_made() -> None:
    tree = base()
    accounts.add_user(tree, "person", home="/a/b/c", make_home=True)
    assert "a" not in tree
    assert accounts.find_user(tree, "person") is not None


def test_backups_are_the_files_as_they_were() -> None:
    tree = base()
    before = tree["etc/shadow"]
    accounts.add_user(tree, "one", system=True)
    assert tree["etc/shadow-"] == before
    shadow = tree["etc/shadow"]
    assert (shadow.mode, shadow.gid) == (0o640, 42)
    assert tree.text("etc/group-") == base().text("etc/group")


def test_without_a_shadow_file_none_is_made() -> None:
    tree = base()
    tree.remove("etc/shadow")
    accounts.add_user(tree, "one", system=True)
    assert "etc/shadow" not in tree


@pytest.mark.parametrize(
    ("name", "where"),
    [("", 0), ("-x", 0), (".", 0), ("$", 0), ("a b", 1), ("bad:name", 3), ("x$y", 1), ("größe", 2), ("a\nb", 1)],
)
def test_improper_names_are_refused(name: str, where: int) -> None:
    with pytest.raises(AccountError, match=f"at position {where}"):
        accounts.add_group(base(), name)


@pytest.mark.parametrize("name", ["a.b-c_d", "x$", "1abc", "A"])
def test_proper_names(name: str) -> None:
    assert accounts.add_user(base(), name).name == name


def test_what_exists_is_left_alone() -> None:
    tree = base()
    with pytest.raises(AccountError, match="group 'wheel' in use"):
        accounts.add_group(tree, "wheel", system=True)
    with pytest.raises(AccountError, match="gid '10' in use"):
        accounts.add_group(tree, "new", gid=10)
    with pytest.raises(AccountError, match="user 'dhcpcd' in use"):
        accounts.add_user(tree, "dhcpcd", system=True)
    with pytest.raises(AccountError, match="uid '100' in use"):
        accounts.add_user(tree, "new", uid=100, system=True)
    with pytest.raises(AccountError, match="uid '65533' in use"):
        accounts.add_user(tree, "new", uid=65533)
    with pytest.raises(AccountError, match="unknown group nope"):
        accounts.add_user(tree, "new", group="nope")
    with pytest.raises(AccountError, match="unknown user nobody"):
        accounts.add_member(tree, "nobody", "wheel")
    with pytest.raises(AccountError, match="unknown group nope"):
        accounts.add_member(tree, "dhcpcd", "nope")
    assert dict(tree.items()) == dict(base().items())


def test_members_are_listed_once() -> None:
    tree = base()
    accounts.add_member(tree, "dhcpcd", "wheel")
    accounts.add_member(tree, "dhcpcd", "wheel")
    assert "wheel:x:10:root,dhcpcd\n" in tree.text("etc/group")


def test_lookup_knows_root_even_in_an_empty_tree() -> None:
    assert accounts.lookup(Tree()) == accounts.AccountNumbers({"root": 0}, {"root": 0})
    names = accounts.lookup(base())
    assert names.users["dhcpcd"] == 100
    assert names.groups["wheel"] == 10


def test_first_line_of_a_name_counts_and_damaged_lines_do_not() -> None:
    tree = base()
    tree.write("etc/group", "a:x:5:\nrubbish\nb:x:none:\na:x:6:\n")
    assert accounts.lookup(tree).groups == {"root": 0, "a": 5}


def test_ensure_user_makes_everything_once() -> None:
    tree = base()
    for _ in range(2):
        user = accounts.ensure_user(tree, "agent", uid=1500, home="/workspace", groups=["wheel"], epoch=EPOCH)
    assert user == accounts.PasswdEntry("agent", 1500, 1500, "", "/workspace", "/bin/sh")
    assert f"agent:*:{DAY}:0:99999:7:::\n" in tree.text("etc/shadow")
    assert "wheel:x:10:root,agent\n" in tree.text("etc/group")
    assert tree.text("etc/passwd").count("agent") == 1
    assert tree["workspace"] == Directory(mode=0o2755, uid=1500, gid=1500, mtime=EPOCH)


def test_ensure_refuses_other_numbers() -> None:
    with pytest.raises(AccountError, match="exists with uid 100, not 5"):
        accounts.ensure_user(base(), "dhcpcd", uid=5)
    with pytest.raises(AccountError, match="exists with gid 10, not 11"):
        accounts.ensure_group(base(), "wheel", 11)


def test_password_field() -> None:
    tree = base()
    accounts.set_password(tree, "root", "!", epoch=EPOCH)
    assert tree.text("etc/shadow").startswith(f"root:!:{DAY}:0:::::\n")
    assert accounts.password(tree, "root") == "!"
    with pytest.raises(AccountError, match="unknown user nobody"):
        accounts.set_password(tree, "nobody", "!")
    for field in ("a:b", "a\nb"):
        with pytest.raises(AccountError, match=r"^improper characters in a password field$"):
            accounts.set_password(tree, "root", field)


def test_files_reached_through_links_are_written_where_they_are() -> None:
    tree = base()
    group = tree["etc/group"]
    tree.remove("etc/group")
    tree.mkdir("data")
    tree.add("data/group", group)
    tree.symlink("etc/group", "../data/group")
    accounts.add_group(tree, "new")
    assert "new:x:1000:" in tree.text("data/group")
    assert isinstance(tree["data/group-"], File)


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans(), st.none() | st.integers(0, 1010)), max_size=20))
def test_numbers_and_names_stay_unique(wanted: list[tuple[str, bool, int | None]]) -> None:
    tree = base()
    for name, system, number in wanted:
        try:
            accounts.add_user(tree, name, uid=number, system=system)
        except AccountError:
            continue
    users, groups = accounts.read_users(tree), accounts.read_groups(tree)
    for taken in ([user.uid for user in users], [user.name for user in users], [group.gid for group in groups]):
        assert len(taken) == len(set(taken))
    assert all(len(line.split(":")) == 9 for line in tree.text("etc/shadow").splitlines())
    assert {user.gid for user in users} <= {group.gid for group in groups}


def test_nobody_is_left_out_when_numbers_run_out() -> None:
    tree = Tree()
    lines = "".join(f"g{number}:x:{number}:\n" for number in range(100, 1000))
    tree.mkdir("etc")
    tree.add("etc/group", File(content=Inline(lines.encode())))
    with pytest.raises(AccountError, match="no number left"):
        accounts.add_group(tree, "more", system=True)


def test_which_lines_are_users() -> None:
    """Lines are read as by the C library: an extra field belongs to the comment, and numbers have 32 bits, less two."""
    tree = base()
    tree.write(
        "etc/passwd",
        "a:x:1:2:x:y:/h:/s\nb:x:1:2:c:/h\nc:x:1:none:c:/h:/s\nd:x:-1:2:c:/h:/s\n"
        "e:x:4294967294:0:c:/h:/s\nf:x:4294967295:0:c:/h:/s\ng:x:00000000001:2:c:/h:/s\nh:x:\u0661:2:c:/h:/s\n",
    )
    assert accounts.read_users(tree) == [
        accounts.PasswdEntry("a", 1, 2, "x:y", "/h", "/s"),
        accounts.PasswdEntry("e", 4294967294, 0, "c", "/h", "/s"),
    ]


def test_which_lines_are_groups() -> None:
    tree = base()
    tree.write("etc/group", "a:x:1:u,,v\nb:x:1\nc:x:1:u:v\nd:x:y:u\n")
    assert accounts.read_groups(tree) == [accounts.GroupEntry("a", 1, ("u", "v"))]


def test_the_own_group_of_a_user_has_its_number() -> None:
    tree = base()
    user = accounts.add_user(tree, "person", uid=1234, epoch=EPOCH)
    assert (user.uid, user.gid) == (1234, 1234)
    assert tree.text("etc/group").endswith("person:x:1234:\n")
    with pytest.raises(AccountError, match="uid '101' in use"):
        accounts.add_user(tree, "other", uid=101)  # the number of a group
    assert accounts.add_user(tree, "service", uid=101, system=True).uid == 101


def test_whatever_is_written_has_the_time_of_the_build() -> None:
    tree = base()
    accounts.ensure_user(tree, "agent", uid=1500, home="/home/agent", groups=["wheel"], epoch=EPOCH)
    for path in ("etc/passwd", "etc/group", "etc/shadow", "home/agent"):
        assert tree[path].mtime == EPOCH, path
    tree = base()
    accounts.set_password(tree, "root", "*", epoch=EPOCH)
    assert (tree["etc/passwd"].mtime, tree["etc/shadow"].mtime) == (EPOCH, EPOCH)
    assert tree.text("etc/passwd-") == tree.text("etc/passwd"), "busybox copies both files"
    assert tree.text("etc/shadow-").startswith("root:*::0:")
    accounts.add_member(tree, "dhcpcd", "wheel", epoch=EPOCH)
    assert tree["etc/group"].mtime == EPOCH


def test_the_longest_name() -> None:
    tree = base()
    assert accounts.add_group(tree, "g" * 255).name == "g" * 255
    with pytest.raises(AccountError, match="name is too long"):
        accounts.add_group(tree, "g" * 256)
    with pytest.raises(AccountError, match="illegal character with code 0 at position 0"):
        accounts.add_group(tree, "")


def test_an_existing_user_is_used_as_it_is() -> None:
    tree = base()
    assert accounts.ensure_user(tree, "dhcpcd", home="/elsewhere", groups=["wheel"]).home == "/var/lib/dhcpcd"
    assert "wheel:x:10:root,dhcpcd\n" in tree.text("etc/group")
    assert accounts.password(tree, "dhcpcd") == "!"


def test_a_user_without_a_stated_number_takes_a_free_one() -> None:
    tree = base()
    assert accounts.ensure_user(tree, "agent").uid == 1000
    assert accounts.ensure_group(tree, "service").gid == 103, "102 is the group of agent"
    assert accounts.password(tree, "nobody") is None


def test_without_a_time_files_are_from_1970() -> None:
    changes: list[Callable[[Tree], object]] = [
        lambda tree: accounts.add_group(tree, "g"),
        lambda tree: accounts.add_member(tree, "dhcpcd", "wheel"),
        lambda tree: accounts.add_user(tree, "u", home="/home/u"),
        lambda tree: accounts.set_password(tree, "root", "*"),
        lambda tree: accounts.ensure_group(tree, "g"),
        lambda tree: accounts.ensure_user(tree, "u", home="/home/u"),
    ]
    for change in changes:
        tree = base()
        before = dict(tree.items())
        change(tree)
        changed = [path for path, node in tree.items() if before.get(path) is not node]
        assert changed
        assert {tree[path].mtime for path in changed} == {0}


def test_a_group_is_made_at_the_time_of_the_build() -> None:
    tree = base()
    assert accounts.ensure_group(tree, "g", 500, epoch=EPOCH).gid == 500
    assert tree["etc/group"].mtime == EPOCH
    assert accounts.ensure_group(tree, "g", 500).gid == 500
    with pytest.raises(AccountError, match=r"^group 'g' exists with gid 500, not 501$"):
        accounts.ensure_group(tree, "g", 501)


def test_the_first_line_of_a_user_has_the_password() -> None:
    tree = base()
    tree.write("etc/shadow", "rootless:a:0:0:::::\nroot:b:0:0:::::\nroot:c:0:0:::::\n")
    assert accounts.password(tree, "root") == "b"
    assert accounts.password(tree, "roo") is None
    accounts.set_password(tree, "root", "d")
    assert tree.text("etc/shadow") == "rootless:a:0:0:::::\nroot:d:0:0:::::\nroot:c:0:0:::::\n"


def test_a_new_user_has_the_shell_and_the_home_that_are_asked_for() -> None:
    user = accounts.ensure_user(base(), "agent", shell="/bin/ash", home="/srv/agent")
    assert (user.shell, user.home) == ("/bin/ash", "/srv/agent")
    user = accounts.ensure_user(base(), "agent")
    assert (user.shell, user.home) == ("/bin/sh", "/home/agent")


def test_a_line_of_a_password_has_at_least_three_fields() -> None:
    tree = base()
    tree.write("etc/shadow", "one:*\ntwo:*:1\n")
    with pytest.raises(AccountError, match=r"^unknown user one$"):
        accounts.set_password(tree, "one", "!")
    accounts.set_password(tree, "two", "!", epoch=EPOCH)
    assert tree.text("etc/shadow") == f"one:*\ntwo:!:{DAY}\n"


def test_the_groups_of_a_new_user_have_the_time_of_the_build() -> None:
    for system, group in ((False, None), (True, None), (False, "wheel")):
        tree = base()
        accounts.add_user(tree, "person", epoch=EPOCH, system=system, group=group)
        assert tree["etc/group"].mtime == EPOCH, (system, group)
    tree = base()
    accounts.ensure_group(tree, "more", epoch=EPOCH)
    assert tree["etc/group"].mtime == EPOCH


def test_without_a_time_everything_is_of_1970() -> None:
    tree = Tree()
    for path in ("etc/passwd", "etc/group", "etc/shadow"):
        tree.write(path, "", mtime=EPOCH)
    accounts.add_group(tree, "more")
    assert tree["etc/group"].mtime == 0
    accounts.add_user(tree, "person", home="/person", make_home=True)
    assert [tree[path].mtime for path in ("etc/passwd", "etc/group", "etc/shadow", "person")] == [0] * 4
    assert tree.text("etc/shadow") == "person:!:0:0:99999:7:::\n"
    tree.write("etc/group", tree.text("etc/group"), mtime=EPOCH)
    accounts.add_member(tree, "person", "more")
    assert tree["etc/group"].mtime == 0
    tree.write("etc/shadow", tree.text("etc/shadow"), mtime=EPOCH)
    accounts.set_password(tree, "person", "*")
    assert (tree["etc/shadow"].mtime, tree["etc/passwd"].mtime) == (0, 0)
    accounts.ensure_group(tree, "third")
    accounts.ensure_user(tree, "agent", home="/agent")
    assert [tree[path].mtime for path in ("etc/passwd", "etc/group", "etc/shadow", "agent")] == [0] * 4


@pytest.mark.slow
def test_the_last_number_of_an_ordinary_account() -> None:
    tree = Tree()
    tree.write("etc/group", "".join(f"g{number}:x:{number}:\n" for number in range(1000, 59999)))
    assert accounts.add_group(tree, "last").gid == 59999
    with pytest.raises(AccountError, match="no number left"):
        accounts.add_group(tree, "more")


def test_an_existing_group_is_used_as_it_is() -> None:
    tree = base()
    for gid in (None, 10):
        assert accounts.ensure_group(tree, "wheel", gid) == accounts.GroupEntry("wheel", 10, ("root",))
    assert tree["etc/group"] == base()["etc/group"]


def test_a_user_whose_own_group_is_there_with_another_number() -> None:
    with pytest.raises(AccountError, match=r"^group 'wheel' exists with gid 10, not 1500$"):
        accounts.ensure_user(base(), "wheel", uid=1500)
    with pytest.raises(AccountError, match=r"^group 'wheel' in use$"):
        accounts.add_user(base(), "wheel")


def test_improper_names_of_users_are_refused_whatever_group_they_get() -> None:
    tree = base()
    for system, group in ((True, None), (False, "wheel"), (False, None)):
        with pytest.raises(AccountError, match="at position 1"):
            accounts.add_user(tree, "a b", system=system, group=group)
    assert dict(tree.items()) == dict(base().items())


def test_a_user_has_the_shell_that_is_asked_for() -> None:
    assert accounts.ensure_user(base(), "agent", shell="/bin/false").shell == "/bin/false"
    assert accounts.ensure_user(base(), "agent", shell="").shell == ""
    assert accounts.add_user(base(), "service", system=True, shell="/bin/sh", home="").home == ""


def test_a_system_user_where_nobody_has_the_group_of_the_rest() -> None:
    """It has the group's number nevertheless, as with busybox."""
    tree = base()
    tree.write("etc/group", "root:x:0:root\n")
    assert accounts.add_user(tree, "lonely", system=True).gid == 65533
    assert tree.text("etc/group") == "root:x:0:root\n"


def test_a_home_that_is_a_file_stays_one() -> None:
    tree = base()
    tree.write("dev/null", "", mode=0o666)
    accounts.add_user(tree, "person", home="/dev/null", make_home=True)
    assert tree["dev/null"] == File(content=Inline(b""), mode=0o666)


def test_a_skeleton_that_is_no_folder_gives_nothing() -> None:
    tree = base()
    tree.write("etc/skel", "x")
    accounts.add_user(tree, "person", make_home=True)
    assert tree.children("home/person") == []
    tree.write("srv/skeleton/deep/file", "x")
    accounts.add_user(tree, "other", make_home=True, skeleton="/srv/skeleton")
    assert tree.text("home/other/deep/file") == "x"
    assert (tree["home/other/deep"].uid, tree["home/other/deep"].gid) == (1001, 1001)
