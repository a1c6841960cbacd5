"""What all tests share."""

import os

# Before tqdm is imported: bars of other libraries would stand before the one line that an error is.
os.environ.setdefault("TQDM_DISABLE", "1")
