"""The operators in C++ (`csrc/`). `library` finds out whether they are there; everything else asks it first."""
