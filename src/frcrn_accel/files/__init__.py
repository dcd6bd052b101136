"""Read audio files in blocks, and write them atomically: a file is either complete or absent."""

from frcrn_accel.files.film import FILM_SUFFIXES, is_film, write_film
from frcrn_accel.files.film_sound import Sound
from frcrn_accel.files.names import FolderScan, LeftOut, audio_files, audio_suffixes, check_targets, scan_folder
from frcrn_accel.files.reading import AudioFile, open_audio
from frcrn_accel.files.spool import local_file
from frcrn_accel.files.writing import AudioWriter, create_audio

__all__ = [
    "FILM_SUFFIXES",
    "AudioFile",
    "AudioWriter",
    "FolderScan",
    "LeftOut",
    "Sound",
    "audio_files",
    "audio_suffixes",
    "check_targets",
    "create_audio",
    "is_film",
    "local_file",
    "open_audio",
    "scan_folder",
    "write_film",
]
