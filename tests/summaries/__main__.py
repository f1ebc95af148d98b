"""Regenerate the summaries of all situations and the README's pictures."""

from tests.summaries import NAMES, files

if __name__ == "__main__":
    for name in NAMES:
        for path, text in files(name):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
