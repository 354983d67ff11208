"""Amazon Bedrock's runtime: converse and invoke, plain and streamed.

Requests are signed (SigV4) over head and body: neither is changed. Model names with a slash (ARNs) are encoded in the
path as %2F, which is refused everywhere: use the profile's or model's id.
"""

from __future__ import annotations

from agentmon.providers import bedrock_usage
from agentmon.providers.declaration import (
    Client,
    Convention,
    Endpoint,
    Metering,
    Provider,
    Signing,
    free,
    refused,
)
from agentmon.providers.estimate import bound
from agentmon.providers.match import BODYLESS

_METERED, _APART = Metering.METERED, Convention.APART
_CONVERSE = bound("inferenceConfig.maxTokens")
_INVOKE = bound(
    "max_tokens", "max_tokens_to_sample", "max_gen_len", "maxTokens", "max_new_tokens", "inferenceConfig.maxTokens",
    "inferenceConfig.max_new_tokens", "textGenerationConfig.maxTokenCount", default=8192,
)  # fmt: skip
_converse, _invoke = bedrock_usage.converse_parser, bedrock_usage.invoke_parser

PROVIDER = Provider(
    name="bedrock",
    hosts=(
        "bedrock-runtime.*.amazonaws.com", "bedrock-runtime-fips.*.amazonaws.com", "bedrock-runtime.*.amazonaws.com.cn",
        "bedrock-runtime.*.api.aws",
    ),
    endpoints=(
        Endpoint("POST", "/model/*/converse", _METERED, _converse, _CONVERSE, convention=_APART),
        Endpoint("POST", "/model/*/converse-stream", _METERED, _converse, _CONVERSE, convention=_APART),
        Endpoint("POST", "/model/*/invoke", _METERED, _invoke, _INVOKE, convention=_APART),
        Endpoint("POST", "/model/*/invoke-with-response-stream", _METERED, _invoke, _INVOKE, convention=_APART),
        *free("POST", "/model/*/count-tokens"),
        *BODYLESS,
        *refused("POST", "/async-invoke"),  # billed later, outside any response
        *refused("POST", "/guardrail/*/version/*/apply"),  # billed by the unit
    ),
    client=Client(env=("AWS_BEARER_TOKEN_BEDROCK", "AWS_REGION", "AWS_DEFAULT_REGION", "CLAUDE_CODE_USE_BEDROCK")),
    signing=Signing.SIGNED,
)  # fmt: skip
