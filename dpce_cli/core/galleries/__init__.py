"""Galleries: folders of photos and lists of sentences, embedded once and searched."""
