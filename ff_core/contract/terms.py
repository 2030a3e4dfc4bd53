"""Where the term of a controller is: in epochs, and in numbers of records (docs/protocol.md, section 8)."""

#: Epochs of one term. No controller begins so many while it cannot be heard.
EPOCHS_A_TERM = 1024
#: Numbers of records: what is above these bits is the term.
TERM_BITS = 32
