"""Which names and bytes mean what: functions of libc, entry points of network libraries, traces of vendored ones."""

from __future__ import annotations

import re

from agentmon.audit_native.model import Way

LIBC: dict[Way, frozenset[str]] = {
    Way.CONNECT: frozenset({
        "connect", "__connect", "__libc_connect", "sendto", "__sendto", "__libc_sendto", "sendmsg", "__sendmsg",
        "__libc_sendmsg", "sendmmsg", "__sendmmsg", "clnt_create", "rcmd", "rexec",
    }),
    Way.SYSCALL: frozenset({"syscall"}),
    Way.CALL: frozenset({"ffi_call"}),
    Way.RESOLVE: frozenset({
        "getaddrinfo", "getaddrinfo_a", "getnameinfo", "gethostbyname", "gethostbyname_r", "gethostbyname2",
        "gethostbyname2_r", "gethostbyaddr", "gethostbyaddr_r", "res_query", "res_search", "res_send", "res_nquery",
        "res_nsearch", "res_nsend", "__res_query", "__res_search", "__res_send", "__res_nquery", "__res_nsearch",
        "__res_nsend", "__res_querydomain",
    }),
    Way.LOAD: frozenset({"dlsym", "dlvsym", "__libc_dlsym"}),
    Way.PROCESS: frozenset({
        "execve", "execv", "execvp", "execvpe", "execl", "execle", "execlp", "execveat", "fexecve", "posix_spawn",
        "posix_spawnp", "system", "popen", "_IO_popen",
    }),
}  # fmt: skip
FFI = "libffi"  # compiled in, its function is not among the imports
IO_URING = "io_uring_"  # liburing's functions all begin so
INTERPRETER = "PySys_AddAuditHook"  # exported by what raises the audit events

# A function that opens connections on its caller's behalf → the library it belongs to. Not SSL_connect and the like:
# these speak over a socket that they are given.
THROUGH: dict[str, str] = {
    "curl_easy_perform": "libcurl", "curl_multi_perform": "libcurl", "curl_multi_socket_action": "libcurl",
    "BIO_new_connect": "openssl", "BIO_s_connect": "openssl", "BIO_new_ssl_connect": "openssl",
    "BIO_connect": "openssl", "OSSL_HTTP_transfer": "openssl", "OSSL_HTTP_get": "openssl",
    "uv_tcp_connect": "libuv", "uv_udp_connect": "libuv", "uv_udp_send": "libuv", "uv_getaddrinfo": "libuv",
    "PQconnectdb": "libpq", "PQconnectdbParams": "libpq", "PQconnectStart": "libpq", "PQconnectStartParams": "libpq",
    "PQconnectPoll": "libpq", "mysql_real_connect": "libmysqlclient", "zmq_connect": "zeromq",
    "ares_query": "c-ares", "ares_search": "c-ares", "ares_getaddrinfo": "c-ares", "ares_gethostbyname": "c-ares",
    "bufferevent_socket_connect": "libevent", "bufferevent_socket_connect_hostname": "libevent",
    "ssh_connect": "libssh", "redisConnect": "hiredis", "redisAsyncConnect": "hiredis", "rd_kafka_new": "librdkafka",
    "grpc_channel_create": "grpc", "mongoc_client_new": "mongo-c-driver", "ldap_initialize": "openldap",
    "SQLConnect": "odbc", "SQLDriverConnect": "odbc", "SQLDriverConnectW": "odbc", "dbopen": "freetds",
    "amqp_socket_open": "rabbitmq-c", "mosquitto_connect": "mosquitto", "nng_dial": "nng", "rdma_connect": "rdma",
    "g_socket_client_connect": "glib-gio", "soup_session_send": "libsoup",
    "avformat_open_input": "ffmpeg", "GDALOpenEx": "gdal", "snmp_open": "net-snmp",
}  # fmt: skip

# Sonames, with the hash that auditwheel puts in: libcurl-8a5c2f.so.4.8.0, libssl.so.3.
SONAME: dict[str, str] = {
    "libcurl": "libcurl", "libcurl-gnutls": "libcurl", "libssl": "openssl", "libcrypto": "openssl", "libuv": "libuv",
    "libpq": "libpq", "libmysqlclient": "libmysqlclient", "libmariadb": "libmysqlclient", "libzmq": "zeromq",
    "libcares": "c-ares", "libevent": "libevent", "libevent_core": "libevent", "libssh": "libssh",
    "libssh2": "libssh2", "libhiredis": "hiredis", "librdkafka": "librdkafka", "libgrpc": "grpc",
    "libmongoc": "mongo-c-driver", "libldap": "openldap", "libodbc": "odbc", "libsybdb": "freetds",
    "librdmacm": "rdma", "liburing": "liburing", "libnghttp2": "nghttp2", "libgnutls": "gnutls", "libnanomsg": "nng",
}  # fmt: skip
_SONAME = re.compile(r"(?P<stem>lib[A-Za-z0-9_+-]*?)(?:-[0-9a-f]{6,})?(?:-[0-9.]+)?\.so(?:\.|$)")

# Bytes that a library compiled in leaves behind: what to look for first, and the expression that confirms it and has
# the version as its group, if there is one.
TRACES: tuple[tuple[str, bytes, re.Pattern[bytes]], ...] = (
    ("libcurl", b"libcurl/", re.compile(rb"libcurl/(\d+\.\d+\.\d+)")),
    ("libcurl", b"curl_easy_perform", re.compile(rb"\0curl_easy_perform()\0")),
    ("openssl", b"OpenSSL ", re.compile(rb"OpenSSL (\d+\.\d+\.\d+[a-z]*) +\d+ \w{3} \d{4}")),
    ("aws-lc", b"AWS-LC", re.compile(rb"AWS-LC (?:FIPS )?(\d+\.\d+\.\d+)")),
    ("boringssl", b"BoringSSL", re.compile(rb"BoringSSL()\0")),
    (FFI, b"ffi_call", re.compile(rb"\0(?:\w+_)?ffi_call()\0")),
    ("libuv", b"uv_tcp_connect", re.compile(rb"\0uv_tcp_connect()\0")),
    ("libpq", b"could not translate host name", re.compile(rb"could not translate host name() \"%s\" to address")),
    ("libmysqlclient", b"mysql_real_connect", re.compile(rb"\0mysql_real_connect()\0")),
    ("zeromq", b"zmq_connect", re.compile(rb"\0zmq_connect()\0")),
    ("c-ares", b"ares_init_options", re.compile(rb"\0ares_init_options()\0")),
    ("libssh2", b"libssh2_", re.compile(rb"libssh2_(\d+\.\d+\.\d+)")),
    ("librdkafka", b"rd_kafka_new", re.compile(rb"\0rd_kafka_new()\0")),
    ("grpc", b"grpc-c/", re.compile(rb"grpc-c/(\d+\.\d+\.\d+)")),
    ("go", b" Go buildinf:", re.compile(rb"\xff Go buildinf:()")),
    ("rust std::net", b"library/std/src/net/", re.compile(rb"library/std/src/net/()")),
    *(
        (f"rust {crate}", b"/%s-" % crate.encode(), re.compile(rb"/%s-(\d+\.\d+\.\d+[\w.+-]*)/src/" % crate.encode()))
        for crate in ("reqwest", "hyper", "hyper-util", "ureq", "tokio", "mio", "quinn", "socket2", "isahc", "rustix")
    ),
)
GO_CONNECT = b"syscall.connect"  # in the function table that the Go runtime needs, also of stripped programs


def library(soname: str) -> str:
    """The network library that a file name stands for, "" for any other."""
    found = _SONAME.match(soname)
    return SONAME.get(found["stem"], "") if found else ""


# System calls that reach the network, by machine: number → name.
_SHARED = {425: "io_uring_setup", 426: "io_uring_enter"}
CALLS: dict[str, dict[int, str]] = {
    "x86_64": {42: "connect", 44: "sendto", 46: "sendmsg", 307: "sendmmsg", **_SHARED},
    "aarch64": {203: "connect", 206: "sendto", 211: "sendmsg", 269: "sendmmsg", **_SHARED},
    "i386": {102: "socketcall", 362: "connect", 369: "sendto", 370: "sendmsg", 345: "sendmmsg", **_SHARED},
}
