"""Texts as columns: words, lines and paragraphs as byte ranges, found by compiled kernels and shared by all filters."""

from data_pipeline.text.texts import Segmenter, Spans, Texts, Unspaced

__all__ = ["Segmenter", "Spans", "Texts", "Unspaced"]
