"""Turnstone: the AI worker of AI-assisted coding exams."""

__version__ = "0.1.0"
