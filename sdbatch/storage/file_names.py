"""File names: which are jobs, and how they sort."""

import re
import unicodedata
from collections.abc import Iterable
from fnmatch import fnmatchcase

SENT = "from-the-page-"  # how pictures begin that visitors of the page sent, until the jobs that name them have copies
DEFAULT_CONFIG = "configs/stable-diffusion/v1-inference.yaml"  # of a job that names none
JOB_LOG = "log.jsonl"  # in a job's folder: what the service said about it

SUFFIXES = (".yaml", ".yml", ".json")

# Names of temporary files of editors, file managers and copying programs.
NOBODYS_PREFIXES = (".", "~")
PARTIAL_SUFFIXES = (".part", ".partial", ".tmp", ".swp", ".filepart", ".crdownload", "~")

# Folders in which file servers, desktops and filesystems keep deleted files, snapshots and their own data;
# hidden ones (.Trash-1000, .stversions, .snapshot, .zfs) need not stand here. In any case of letters, with * for any.
_NOBODYS_FOLDERS = (
    *("#recycle*", "#snapshot*", "@eadir", "@tmp*", "@sharebin", "@sharesnap"),  # Synology
    *("@recycle*", "@recently-snapshot*", "@transcode", "@__thumb"),  # QNAP
    *("$recycle.bin", "recycler", "recycled", "recycle bin*", "system volume information", "found.[0-9]*"),  # Windows
    *("network trash folder", "temporary items", "thevolumesettingsfolder", "__macosx"),  # macOS and netatalk
    *("lost+found", "trashbox", "files_trashbin", "files_versions"),  # Linux, Buffalo, Nextcloud
    *("@gmt-*", "_gsdata_"),  # Samba's snapshots, GoodSync
)

NaturalKey = list[tuple[int, int, str]]


def is_job_name(name: str) -> bool:
    """Whether a file of this name is meant as a job."""
    lower = name.lower()
    return lower.endswith(SUFFIXES) and not name.startswith(NOBODYS_PREFIXES) and not lower.endswith(PARTIAL_SUFFIXES)


def is_nobodys_folder(name: str, ignored: Iterable[str] = ()) -> bool:
    """Whether a folder of this name contains no jobs: hidden, a trash folder, or in `ignored`."""
    folded = unicodedata.normalize("NFC", name).casefold()
    patterns = (*_NOBODYS_FOLDERS, *(unicodedata.normalize("NFC", pattern).casefold() for pattern in ignored))
    return name.startswith(NOBODYS_PREFIXES) or any(fnmatchcase(folded, pattern) for pattern in patterns)


def is_text(name: str) -> bool:
    """Whether a name is valid Unicode; names that are not UTF-8 can't be written down."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def natural_key(text: str) -> NaturalKey:
    """Sorts "job-2" before "job-10"."""
    parts = filter(None, re.split(r"(\d{1,18})", text))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]
