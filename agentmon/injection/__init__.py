"""injection: indicators that a text speaks to the agent that reads it. Finds them in bytes; knows no HTTP library.

    rules.toml ─ rules ─ one RE2 set ─┐
    bytes ─ plain.py: escapes, entities, invisible and look-alike characters undone ─▶ watch.Watch.feed() → Finding…

An indicator is no proof: instructions may stand in any text for good reasons, and an attacker may find other words.
"""
