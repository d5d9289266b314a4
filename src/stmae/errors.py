"""The one error a person sees for a mistake they can mend: what was given, why it cannot work, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """A mistake the user can mend.

    Args:
        problem: the value that was given and the reason it cannot work, in one sentence.
        cure: what to do instead, as an imperative sentence; may be empty where `problem` says it.

    The command line prints it without a traceback and exits with status 2; from Python it is an
    ordinary ``ValueError``.
    """

    def __init__(self, problem: str, cure: str = "") -> None:
        self.problems: list[tuple[str, str]] = [(problem, cure)]
        super().__init__(problem, cure)

    def __str__(self) -> str:
        lines = [" ".join(part for part in pair if part) for pair in self.problems]
        if len(lines) == 1:
            return lines[0]
        return f"{len(lines)} mistakes:\n" + "\n".join(f"  {i}. {line}" for i, line in enumerate(lines, 1))


class Note(UserWarning):
    """Something that a person should know of what they use, such as its licence; the command line prints it as a line.

    >>> warnings.warn("...", Note, stacklevel=2)
    """


class Problems:
    """Gathers mistakes so that all of them are reported at once.

    >>> problems = Problems()
    >>> problems.check(ratio < 1, f"mask ratio {ratio} hides every token.", "Choose one below 1.")
    >>> problems.raise_any()
    """

    def __init__(self) -> None:
        self._errors: list[UserError] = []

    def add(self, problem: str, cure: str = "") -> None:
        self._errors.append(UserError(problem, cure))

    def check(self, fine: bool, problem: str, cure: str = "") -> None:
        """Remembers the problem unless `fine`."""
        if not fine:
            self.add(problem, cure)

    def extend(self, error: UserError) -> None:
        self._errors.extend(UserError(*pair) for pair in error.problems)

    def raise_any(self) -> None:
        """Raises one `UserError` that holds everything gathered; does nothing if that is nothing."""
        if self._errors:
            whole = UserError(*self._errors[0].problems[0])
            whole.problems = [pair for error in self._errors for pair in error.problems]
            raise whole


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """``Did you mean "x"?`` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f'Did you mean "{near[0]}"?' if near else ""


def unknown(kind: str, word: object, known: Sequence[str]) -> UserError:
    """The error for a name that is not in a list: the nearest one, and the list."""
    hint = did_you_mean(word, known)
    return UserError(f'unknown {kind} "{word}".', f"{hint} Known: {', '.join(known)}.".strip())
