"""providers: what agentmon knows of each LLM provider, as data plus small pure parsers.

    declaration.py   Provider, Endpoint, Parser protocol        registry.py   built-in declarations + settings' additions
    sse.py json_.py  incremental byte-level readers             anthropic.py openai.py …   one file per provider

Nothing here does I/O or imports mitmproxy: bytes in, wire.Usage out.
"""
