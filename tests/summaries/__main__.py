"""Regenerate the summaries of all situations and the README's pictures."""

from tests.summaries import files

if __name__ == "__main__":
    for path, text in files():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
