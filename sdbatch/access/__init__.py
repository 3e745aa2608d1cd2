"""Who a visitor of the page is: an account of this machine, a program with a token, somebody behind a proxy."""
