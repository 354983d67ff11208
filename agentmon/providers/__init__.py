"""providers: what agentmon knows of each LLM provider, as data plus small pure parsers.

    response bytes ─ decoding.Decoder ─▶ body.Choice ─▶ JsonBody | SseParser | GeminiArray … ─▶ wire.Usage
    request body ─ request.read ─▶ estimate.of ─▶ Estimate          include_usage ─▶ rewritten body, and back

    declaration.py  Provider, Endpoint, Parser      registry.py lint.py overlap.py  built-in declarations, additions
    match.py        host → provider → endpoint      counting.py estimate.py calibration.py  what a request may cost
    sse.py lines.py json_array.py eventstream.py    framings          NAME.py        one file per provider
    stream.py body.py jsonread.py                   shared readers    NAME_usage.py  one file per protocol

Nothing here does I/O or imports mitmproxy: bytes in, wire.Usage out.
"""
