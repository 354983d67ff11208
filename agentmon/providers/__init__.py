"""providers: what agentmon knows of each LLM provider, as data plus small pure parsers.

    response bytes ─ decoding.Decoder ─▶ body.Choice ─▶ JsonBody | StreamParser | ChatStream … ─▶ wire.Usage
    request body ─ estimate ─▶ Estimate          openai.include_usage ─▶ rewritten body

    declaration.py  Provider, Endpoint, Parser      registry.py  built-in declarations + settings' additions
    match.py        host → provider → endpoint      sse.py body.py decoding.py estimate.py   shared readers
    anthropic.py openai.py                          one file per protocol

Nothing here does I/O or imports mitmproxy: bytes in, wire.Usage out.
"""
