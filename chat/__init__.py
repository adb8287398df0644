"""A chat on the terminal with a model that has a method: `gali-chat`, in a checkout `python -m tools.chat`.

`session` holds a conversation with a model, `terminal` takes lines and shows answers.
"""


def main(argv: list[str]) -> int:
    """Chat until the input ends; returns the exit code. Raises `UserError`."""
    from chat import terminal

    return terminal.main(argv)
