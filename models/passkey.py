"""The pass key's wording: a text of one repeated sentence, a line with the key, and the question for it.

Word for word from landmark attention (Mohtashami & Jaggi 2023, github.com/epfml/landmark-attention, Apache-2.0).
"""

TASK_DESCRIPTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
GARBAGE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
PASSKEY_LINE = "The pass key is {key}. Remember it. {key} is the pass key."
PASSKEY_QUESTION = "What is the pass key? The pass key is"
