"""Without transformers there is nothing to compare with: the tests of this folder are not collected then."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("transformers") else ["*_test.py"]
