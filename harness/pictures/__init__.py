"""Maps of tokens as pictures for print."""
