"""Find out whether a repository has a blob, and have it mounted from another repository if it does not.

Source: distribution-spec 1.1, "Checking if content exists in the registry", "Mounting a blob from another repository".
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from urllib.parse import quote, urljoin

from imgkit.fetch.checks import declared_length
from imgkit.oci.descriptors import Descriptor
from imgkit.registry.httpcalls import Answer, place_of
from imgkit.registry.registryerrors import RegistryError
from imgkit.registry.remote import RemoteRepository, check_digest
from imgkit.registry.tokens import PUSH
from imgkit.registry.wire import origin

log = logging.getLogger("imgkit.registry")

UPLOADS = "blobs/uploads/"
"""Where uploads begin, below ``/v2/NAME/``."""


def has_blob(
    repository: RemoteRepository, descriptor: Descriptor, cancelled: threading.Event, *, actions: str = PUSH
) -> bool:
    """Ask whether the repository has a blob.

    Raises:
        RegistryError: the registry says that the blob has another size.
    """
    what = f"{repository.name.full_repository}@{descriptor.digest}"
    place = f"blobs/{descriptor.digest}"
    answer = repository.request("HEAD", place, (200, 404), cancelled=cancelled, actions=actions, what=what)
    if answer.status == 404:
        return False
    size = declared_length(answer.headers)
    if size is not None and size != descriptor.size:
        raise RegistryError(f"{what}: the registry has {size} bytes under this digest, and not {descriptor.size}")
    return True


def mount(
    repository: RemoteRepository, descriptor: Descriptor, sources: Sequence[str], cancelled: threading.Event
) -> tuple[str, str]:
    """Have a blob mounted from one of several repositories of the same registry.

    Returns:
        The repository that it was mounted from, empty if none had it; and the place of an upload that the registry has
        begun instead, empty if there is none.
    """
    begun = ""
    for source in sources:
        query = f"?mount={quote(descriptor.digest, safe='')}&from={quote(source, safe='')}"
        try:
            answer = repository.request(
                "POST", UPLOADS + query, (201, 202), cancelled=cancelled, actions=PUSH, source=source
            )
        except RegistryError as error:
            log.debug("%s: no mount from %s: %s", descriptor.digest, source, error)
            continue
        if answer.status == 201:
            check_digest(answer, descriptor.digest, f"{repository.name.full_repository}@{descriptor.digest}")
            return source, ""
        begun = upload_location(answer)
    return "", begun


def upload_location(answer: Answer) -> str:
    """Return where the upload goes on, which must be at the registry itself.

    Raises:
        RegistryError: the registry does not say it, or names another place.
    """
    text = answer.headers.get("Location", "")
    try:
        place = urljoin(answer.url, text)
        inside = bool(text) and origin(place) == origin(answer.url)
    except ValueError:
        place, inside = text, False
    if inside:
        return place
    if not text:
        raise RegistryError(f"{place_of(answer.url)}: the registry does not say where to send the blob (Location)")
    hint = None
    if origin(answer.url)[0] == "https" and place.startswith("http:"):
        hint = "a proxy before the registry does not tell it that the outside is https (X-Forwarded-Proto)"
    message = f"{place_of(answer.url)}: the registry wants the blob to be sent to {place_of(place)!r}, another server"
    raise RegistryError(message, hint=hint)
