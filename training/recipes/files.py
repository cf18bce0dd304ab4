"""Recipe files of other trainers in the host's folders."""

from pathlib import Path

from ..basics.errors import InputError, raise_if_any
from ..basics.folders import files_below
from ..data.folder_settings import SETTINGS_FILE
from ..host.folders import data_path, data_roots

SUBJECT = "Import Recipe"
RECIPE_ENDINGS = (".toml", ".json", ".yaml", ".yml")
DEEPEST = 3
"""levels of subfolders that are searched"""


def recipe_files() -> list[str]:
    """Files that may be recipes: paths relative to the input folder, absolute paths in the other allowed folders."""
    found = []
    for number, root in enumerate(data_roots()):
        paths = [path for path in files_below(root, DEEPEST, within=data_roots()) if _is_recipe(path)]
        found += [str(path) if number else path.relative_to(root).as_posix() for path in paths]
    return found


def recipe_path(name: object) -> Path:
    """The path of a recipe file.

    Args:
        name: as in `recipe_files`.

    Raises:
        InputError: the file is outside the allowed folders, has another ending, or does not exist.
    """
    problems = []
    path = data_path(name, "file", SUBJECT)
    if path.suffix.lower() not in RECIPE_ENDINGS:
        problems.append(f"file is {name!r}; it must end with one of: {' '.join(RECIPE_ENDINGS)}.")
    elif not _is_recipe(path):
        problems.append(
            f"file is {name!r}, and {SETTINGS_FILE} holds Load Dataset's settings for its folder, which reads them by "
            "itself: choose another file, or give this one another name if it is of another trainer."
        )
    elif not path.is_file():
        problems.append(
            f"file is {name!r}, but there is no such file here: put it into {path.parent}, or choose another."
        )
    raise_if_any(SUBJECT, problems)
    return path


def read_recipe(name: str, largest: int) -> str:
    """The text of a recipe file.

    Args:
        largest: allowed size, bytes.

    Raises:
        InputError: as `recipe_path`; also too large, unreadable or not UTF-8.
    """
    path = recipe_path(name)
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(SUBJECT, [f"{path.name} cannot be read: {error.strerror}. Choose another file."]) from error
    except UnicodeDecodeError:
        problem = f"{path.name} is no text in UTF-8: save it again with that encoding, or choose another file."
        raise InputError(SUBJECT, [problem]) from None
    if len(content) > largest:
        raise InputError(
            SUBJECT, [f"{path.name} is larger than {largest:,} bytes, far more than any recipe: choose another file."]
        )
    return text


def _is_recipe(path: Path) -> bool:
    return path.suffix.lower() in RECIPE_ENDINGS and path.name.lower() != SETTINGS_FILE
