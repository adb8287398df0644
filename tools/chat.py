"""The chat of a checkout, `python -m tools.chat`; an installation has it as `gali-chat`. See the package `chat`."""

from gali.commands import run

if __name__ == "__main__":
    run("chat")
