"""The training corpus: Debian's package descriptions and WordNet's glosses.

Both are downloaded from the Debian archive with apt. Run this file as a script to download them in
advance:

    python corpus.py CACHE_FOLDER
"""

import json
import re
import subprocess
import sys
from pathlib import Path

WORDNET_PARTS = ("noun", "verb", "adj", "adv")
SHORTEST_DESCRIPTION = 12  # words
OPENING = 25  # leading words that identify duplicate descriptions


def run(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, **options)


def fetch(cache):
    """Downloads the translation files and the WordNet package to `cache`; returns the folder of the former."""
    lists = cache / "apt-lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    apt_options = ("-q", "-o", f"Dir::State::lists={lists.resolve()}", "-o", "Acquire::Languages=en")
    run("apt-get", *apt_options, "update")
    run("apt-get", *apt_options, "download", "wordnet-base", cwd=cache)
    run("dpkg-deb", "-x", next(cache.glob("wordnet-base_*.deb")), cache / "wordnet")
    return lists


def package_descriptions(lists):
    """Yields (short, long) descriptions. Packages with the same opening words yield one description."""
    translations = sorted(lists.glob("*_main_i18n_Translation-en*"))
    text = run("/usr/lib/apt/apt-helper", "cat-file", *translations, stdout=subprocess.PIPE).stdout
    seen = set()
    for record in text.decode("utf-8", "replace").split("\n\n"):
        match = re.search(r"^Description-en: (.*)\n((?: .*\n?)*)", record, re.M)
        if not match:
            continue
        short, long = match.group(1), " ".join(re.sub(r"^ \.$", "", match.group(2), flags=re.M).split())
        opening = " ".join(long.lower().split()[:OPENING])
        if len(long.split()) >= SHORTEST_DESCRIPTION and opening not in seen:
            seen.add(opening)
            yield short, long


def wordnet_glosses(folder):
    """Yields (words, gloss) for every synset."""
    for part in WORDNET_PARTS:
        for line in (folder / "usr/share/wordnet" / f"data.{part}").read_text().splitlines():
            if line.startswith(" "):  # the licence text at the top of each file
                continue
            fields, _, gloss = line.partition(" | ")
            fields = fields.split()
            words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            yield " ".join(words).replace("_", " "), gloss.strip()


def load(cache):
    """Returns the corpus as two lists of (title, text): descriptions and glosses.

    Downloads it to `cache` unless it is cached there.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / "corpus.json"
    if not path.exists():
        lists = fetch(cache)
        corpus = [list(package_descriptions(lists)), list(wordnet_glosses(cache / "wordnet"))]
        path.write_text(json.dumps(corpus))
    return json.loads(path.read_text())


if __name__ == "__main__":
    descriptions, glosses = load(Path(sys.argv[1]))
    print(f"{len(descriptions)} package descriptions, {len(glosses)} glosses")
