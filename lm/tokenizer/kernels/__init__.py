"""The tokenizer's compiled parts, written for numba. Only `lm.tokenizer.native` imports them, and only to compile.

What is compiled gets all its memory from outside, as numpy arrays: it allocates nothing and raises nothing, so that the
machine code stands alone. Text is valid UTF-8 in a buffer that can be read PADDING bytes beyond what is in use.
"""
