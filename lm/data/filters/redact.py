"""E-mail addresses, telephone numbers and numbers of persons, replaced by placeholders such as <email>.

Found by their form and, where they have one, by their check digit; names and addresses of streets are not found.
"""

import dataclasses
import datetime
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lm.config import ConfigError
from lm.data.filters.filter import Batch, Document


@dataclasses.dataclass(frozen=True)
class Redact:
  """Every document stays. "Ask ann@x.org" -> "Ask <email>"."""

  kinds: tuple[str, ...] = ("email", "resident_id", "credit_card", "ssn", "ip", "phone")  # what is replaced

  def __post_init__(self):
    unknown = [kind for kind in self.kinds if kind not in FORMS]
    if unknown or not self.kinds:
      raise ConfigError(f"filter 'redact': kinds={','.join(unknown)!r}: accepted are {', '.join(FORMS)}")

  def apply(self, batches: Iterable[Batch], notes: dict[str, Any]) -> Iterator[Batch]:
    """Notes: replaced, how many of each kind; changed, how many documents had one."""
    replaced = notes.setdefault("replaced", dict.fromkeys(self.kinds, 0))
    notes["changed"] = 0
    for batch in batches:
      texts = [redact(document.text, replaced) for document in batch]
      notes["changed"] += sum(text != document.text for text, document in zip(texts, batch, strict=True))
      yield [Document(document.number, text) for text, document in zip(texts, batch, strict=True)]


def redact(text: str, replaced: dict[str, int]) -> str:
  """The text with placeholders for the kinds that are keys of `replaced`, which counts them; the order is that of FORMS."""

  def place(match: re.Match, kind: str, is_one: Callable[[str], bool]) -> str:
    if not is_one(match[0]):
      return match[0]
    replaced[kind] += 1
    return f"<{kind}>"

  before = None
  while text != before:  # a placeholder ends the longer number or name that its neighbour was part of
    before, has_number = text, _RUN.search(text) is not None
    for kind, (form, is_one) in FORMS.items():
      if kind in replaced and ("@" in text if kind == "email" else has_number):  # most texts have neither
        text = form.sub(lambda match, kind=kind, is_one=is_one: place(match, kind, is_one), text)
  return text


def _number(*forms: str) -> re.Pattern:
  """One of the forms, and not inside of a longer number or name."""
  return re.compile(rf"(?<![0-9A-Za-z+])(?<![0-9][.-])(?:{'|'.join(forms)})(?![0-9A-Za-z])(?![.-][0-9])")


def _always(_text: str) -> bool:
  return True


def _has_luhn_digit(text: str) -> bool:
  """ISO/IEC 7812: with every second digit from the right doubled, the sum of all digits ends in 0."""
  digits = [int(char) for char in reversed(text) if char.isdigit()]
  return (sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10 == 0


def _is_resident_id(text: str) -> bool:
  """GB 11643-1999: region, date of birth, order, and a check digit by ISO 7064 (mod 11-2)."""
  try:
    datetime.date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
  except ValueError:
    return False
  total = sum(int(digit) * pow(2, 17 - i, 11) for i, digit in enumerate(text[:17]))
  return "10X98765432"[total % 11] == text[17].upper()


_RUN = re.compile(r"[0-9][0-9 ().-]{6}")  # in every number of FORMS
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
# Kind -> (its form, what a match must be besides).
FORMS: dict[str, tuple[re.Pattern, Callable[[str], bool]]] = {
  "email": (
    re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}"),
    _always,
  ),
  "resident_id": (_number(r"[1-9][0-9]{5}(?:18|19|20)[0-9]{9}[0-9Xx]"), _is_resident_id),
  "credit_card": (
    _number(r"[2-6][0-9]{12,18}", r"[2-6][0-9]{3}([ -])[0-9]{4}(?:\1[0-9]{4}){2}", r"3[47][0-9]{2}([ -])[0-9]{6}\2[0-9]{5}"),
    _has_luhn_digit,
  ),
  "ssn": (_number(r"(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}"), _always),
  "ip": (_number(rf"{_BYTE}(?:\.{_BYTE}){{3}}"), _always),
  "phone": (
    _number(
      r"\+[1-9](?:[ ().-]{0,2}[0-9]){7,14}",  # any country's, E.164
      r"(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[.-][0-9]{4}(?: ?(?:x|ext\.?) ?[0-9]{1,5})?",
      r"1[3-9][0-9](?:[ -]?[0-9]{4}){2}",  # Chinese mobile
      r"0[1-9][0-9]{1,2}-[0-9]{7,8}",  # Chinese fixed line
    ),
    _always,
  ),
}
