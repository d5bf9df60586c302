"""Static analysis of submitted code, in a child process: metrics, syntax, lint, patterns, code to review.

``analyser.analyse`` is the way in; it starts ``python -m app.infrastructure.analysis``, in which all parsers run.
"""
