"""Which file is the photo of a file_name, and which file_name is that of a picture."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from deepfake.config import DataConfig
from deepfake.data.layouts import Annotations
from deepfake.errors import DataError


@dataclass(frozen=True)
class FoundPhotos:
    """Where the photos of some file_names are."""

    photos: dict[str, Path | str]  # the real path, or the reason there is none
    by_base_name: int  # photos in another folder than their file_name says


def find_photos(annotations: Annotations, data: DataConfig) -> FoundPhotos:
    """The photo of each listed file_name; DataError if no face has one."""
    found = resolve_photos(annotations.file_names, data.photos_dir, data.follow_links)
    names = annotations.faces["file_name"].unique()
    if not any(isinstance(found.photos[name], Path) for name in names):
        raise DataError(
            f"{data.photos_dir}: none of {len(names)} photos found ({names[0]!r} is"
            f" {found.photos[names[0]]}); set data.photos_dir to the folder that holds them"
        )
    return found


def resolve_photos(
    file_names: Iterable[str], photos_dir: Path, follow_links: bool = False
) -> FoundPhotos:
    """For each name its photo's real path, or the reason there is none.

    file_names: all that are listed, of photos without a face too: a file that has one of these
    names is never taken for another. Tried in turn: the name under photos_dir; the same in the
    spelling of another system (backslashes, letters with their accents apart); without its
    leading `Images/` (the archives unpack so); with its ending in another letter case; the base
    name anywhere under photos_dir. Reasons: 'absent', 'ambiguous: a, b'. Raises DataError where
    a photo really lies outside photos_dir, unless follow_links.
    """
    root = photos_dir.resolve()
    if not root.is_dir():
        raise DataError(f"{photos_dir}: no such folder; set data.photos_dir to the photos' folder")
    search = _Search(root, follow_links, list(dict.fromkeys(file_names)))
    search.take_exact()
    search.take(lambda name: [root / spelling for spelling in _spellings(name)])
    search.take(lambda name: [root / one.removeprefix("Images/") for one in _spellings(name)])
    elsewhere: list[str] = []
    if search.lost:  # only then: walking a big folder takes long
        index = _index(root, follow_links, {_loose(name).name for name in search.lost})
        search.take(lambda name: _in_its_folder(name, index[_loose(name).name], root))
        elsewhere = search.lost
        search.take(lambda name: _of_base_name(name, index[_loose(name).name]))
        search.take(lambda name: index[_loose(name).name])
    photos = {name: search.found.get(name, "absent") for name in search.names}
    return FoundPhotos(photos, sum(isinstance(photos[name], Path) for name in elsewhere))


class _Search:
    """Names that have no file yet, and which name has which file."""

    def __init__(self, root: Path, follow_links: bool, names: list[str]) -> None:
        self.root, self.follow_links, self.names = root, follow_links, names
        self.lost = names
        self.found: dict[str, Path | str] = {}
        self._names_of: dict[Path, set[str]] = defaultdict(set)  # of a file, in one spelling

    def take_exact(self) -> None:
        """The file of each name as it is written; a link may give one file to two names."""
        for name in self.lost:
            if _is_file(self.root / name):
                self._take(name, self.root / name)
        self._drop_found()

    def take(self, candidates_of: Callable[[str], Iterable[Path]]) -> None:
        """For each lost name the only file of its candidates that no other name has or could."""
        free: dict[str, dict[Path, Path]] = {}
        for name in self.lost:
            files = {path.resolve(): path for path in candidates_of(name) if _is_file(path)}
            own = {_canonical(name)}
            free[name] = {real: at for real, at in files.items() if self._names_of[real] <= own}
        wanted = Counter(real for name in _one_a_spelling(free) for real in free[name])
        for name, files in free.items():
            match sorted(files.values()):
                case []:
                    pass
                case [path] if wanted[path.resolve()] == 1:
                    self._take(name, path)
                case [path]:
                    place = path.relative_to(self.root).as_posix()
                    self.found[name] = f"ambiguous: {place} is all there is for several names"
                case several:
                    places = (path.relative_to(self.root).as_posix() for path in several)
                    self.found[name] = "ambiguous: " + ", ".join(places)
        self._drop_found()

    def _take(self, name: str, path: Path) -> None:
        real = path.resolve()
        if not (self.follow_links or real.is_relative_to(self.root)):
            raise DataError(
                f"{path}: file_name {name!r} points outside the photo folder: a link leads to"
                f" {real}; set data.follow_links to true if that is meant, or copy the photo"
            )
        self.found[name] = real
        self._names_of[real].add(_canonical(name))

    def _drop_found(self) -> None:
        self.lost = [name for name in self.lost if name not in self.found]


def _one_a_spelling(names: Iterable[str]) -> Iterable[str]:
    """Of names that differ in their spelling alone the first."""
    return {_canonical(name): name for name in names}.values()


def _canonical(name: str) -> str:
    """A file_name in the one spelling that those of all systems are compared in."""
    return unicodedata.normalize("NFC", PurePosixPath(name.replace("\\", "/")).as_posix())


def _spellings(name: str) -> list[str]:
    canonical = _canonical(name)
    return [name, canonical, unicodedata.normalize("NFD", canonical)]


def _loose(name: str) -> PurePosixPath:
    """With its ending in lower case: a.JPG and a.jpg are one."""
    path = PurePosixPath(_canonical(name))
    return path.with_suffix(path.suffix.lower()) if path.suffix else path


def _index(root: Path, follow_links: bool, wanted: set[str]) -> dict[str, list[Path]]:
    """The files of each wanted loose base name."""
    index: dict[str, list[Path]] = {name: [] for name in wanted}
    seen: set[str] = set()  # a link may lead back to a folder above it
    for folder, folders, files in os.walk(root, followlinks=follow_links):
        real = os.path.realpath(folder) if follow_links else folder
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in files:
            if (loose := _loose(name).name) in wanted:
                index[loose].append(Path(folder, name))
    return index


def _in_its_folder(name: str, candidates: Iterable[Path], root: Path) -> list[Path]:
    wanted = (_loose(name), _loose(_canonical(name).removeprefix("Images/")))
    return [at for at in candidates if _loose(at.relative_to(root).as_posix()) in wanted]


def _of_base_name(name: str, candidates: Iterable[Path]) -> list[Path]:
    base = PurePosixPath(_canonical(name)).name
    return [path for path in candidates if _canonical(path.name) == base]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system, a folder that may not be entered
        return False


@dataclass(frozen=True)
class NamedPicture:
    """What a JSON calls a picture."""

    file_names: tuple[str, ...]  # one, or none, or several that can't be told apart
    by_base_name: bool = False  # its folders are others
    is_contested: bool = False  # by another picture


def name_pictures(pictures: Iterable[Path], file_names: Iterable[str]) -> dict[Path, NamedPicture]:
    """For each picture the longest file_name that its path ends in, or the one of its base name.

    The latter only if no other of the pictures has that name or could have it.
    """
    listed: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(file_names):
        listed[_loose(name).name].append(name)
    named, lost = {}, []
    for picture in dict.fromkeys(pictures):
        if ends := _longest_end(picture, listed.get(_loose(picture.name).name, ())):
            named[picture] = NamedPicture(ends)
        else:
            lost.append(picture)
    taken = {name for picture in named.values() for name in picture.file_names}
    free = {
        picture: tuple(n for n in listed.get(_loose(picture.name).name, ()) if n not in taken)
        for picture in lost
    }
    wanted = Counter(name for names in free.values() for name in names)
    for picture, names in free.items():
        contested = any(wanted[name] > 1 for name in names)
        named[picture] = NamedPicture(names, by_base_name=True, is_contested=contested)
    return named


def _longest_end(picture: Path, file_names: Sequence[str]) -> tuple[str, ...]:
    """Of names in one spelling and letter case if there are such, else of all."""
    path = picture.absolute().as_posix()
    for spell in (lambda name: PurePosixPath(_canonical(name)), _loose):
        parts = spell(path).parts
        for short in (str, lambda name: _canonical(name).removeprefix("Images/")):
            lengths = {name: spell(short(name)).parts for name in file_names}
            ends = {n: len(end) for n, end in lengths.items() if parts[-len(end) :] == end}
            longest = max(ends.values(), default=0)
            if ends:
                return tuple(name for name, length in ends.items() if length == longest)
    return ()
