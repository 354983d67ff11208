"""dlp: what must not leave. Finds secrets in bytes, and takes them out; knows no HTTP library.

    gitleaks.toml ─ rules ─ engine (one pass for all) ─┐
    known values  ─ forms ─ engine (literals) ─────────┴▶ scanner.Scanner.scan(bytes) → Finding…
    bytes ─ views: JSON escapes, %XX, NULs, base64 and hex, nested ─▶ each is searched; spans are of the bytes given

A Finding says which detector, where, and shows what stands around it; the value is in no repr, log or event.
The scanner is for one run; it may be used from several threads at once.
"""
