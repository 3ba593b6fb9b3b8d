"""Text as token ids: tokenizers, token files, packed rows."""
