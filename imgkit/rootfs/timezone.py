"""Set the time zone, as Alpine's ``setup-timezone -i`` does: with the package tzdata, and ``/etc/localtime``."""

from __future__ import annotations

from imgkit.errors import RecipeError
from imgkit.host.suggest import close_matches
from imgkit.recipe import Recipe
from imgkit.tree import Directory, File, Tree

ZONES = "usr/share/zoneinfo"
_LOCALTIME = "etc/localtime"
_NAME = "etc/timezone"
_VARIANTS = ("posix", "right")  # the same zones once more, without and with leap seconds
_MAGIC = b"TZif"  # RFC 8536, section 3.1


def set_timezone(tree: Tree, recipe: Recipe, *, epoch: int) -> None:
    """Make ``/etc/localtime`` a link to the recipe's time zone, if it has one.

    Programs find the name of the zone in the link, and newer rules come with newer packages. A base that keeps the name
    in ``/etc/timezone``, as Debian does, gets the new one there.

    Raises:
        RecipeError: the image has no such time zone.
    """
    zone = recipe.timezone
    if zone is None:
        return
    place = f"{ZONES}/{zone}"
    node = tree.stat(place)
    if not isinstance(node, File) or not node.content.read().startswith(_MAGIC):
        raise _unknown(tree, zone)
    local = tree.resolve(_LOCALTIME, follow=False)
    tree.symlink(local, f"/{place}", mtime=epoch)
    if _NAME in tree:
        tree.write(_NAME, f"{zone}\n", mtime=epoch)


def _unknown(tree: Tree, zone: str) -> RecipeError:
    top = tree.resolve(ZONES)
    if top not in tree:
        return RecipeError(
            f"timezone: {zone}: the image has no time zones (/{ZONES})", hint="start from a base that has tzdata"
        )
    paths = [path.removeprefix(f"{top}/") for path, node in tree.walk(top) if not isinstance(node, Directory)]
    names = [path for path in paths if path[:1].isupper() and path.partition("/")[0] not in _VARIANTS]
    close = _close(zone, names)
    hint = f"did you mean {' or '.join(close)}?" if close else "names are those of the tz database: Europe/Berlin, UTC"
    return RecipeError(f"timezone: {zone}: no such time zone", hint=hint)


def _close(zone: str, names: list[str]) -> list[str]:
    """Return similar names: those that end like ``zone``, which may be a town without its continent, come first."""
    town = zone.rpartition("/")[2].replace(" ", "_").lower()
    ending = [name for name in names if name.rpartition("/")[2].lower() == town]
    return ending[:3] or close_matches(zone, names)
