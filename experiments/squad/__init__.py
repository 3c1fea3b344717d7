"""Answers that stand in a text: a small sentence encoder on a part of SQuAD's dev set, by two methods."""
