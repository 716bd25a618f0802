"""Write text_sample.txt: a few lines of each domain that `moe_lessons.tasks.text` generates.

python data/make_text_sample.py
"""

from pathlib import Path

from moe_lessons.tasks.text import DOMAINS, make_text

SAMPLE = Path(__file__).with_name("text_sample.txt")


def sample() -> str:
    """At least 400 bytes of each domain, each under a heading with its name."""
    return "\n".join(f"== {domain} ==\n{make_text(domain, 400).rstrip()}\n" for domain in DOMAINS)


if __name__ == "__main__":
    SAMPLE.write_bytes(sample().encode())
