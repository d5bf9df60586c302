"""Problems in the common package format (``problem.yaml``), as Kattis, DOMjudge and others have them."""
