/* SPDX-License-Identifier: GPL-2.0 */
/* The layouts shared by the programs and by user space (ebpf/abi.py mirrors them; a test compares offsets).
 *
 * Every field has a fixed width, padding is named, nothing is packed, and every byte of a key is significant:
 * padding in keys must be zero. Integers are in host order unless the name ends in _be. Addresses are 16 bytes in
 * network order; an IPv4 address stands as ::ffff:a.b.c.d, so one map serves both families and a mapped destination
 * is the IPv4 one. The text of this file is part of the layout hash: pins made by another text are never read.
 */
#ifndef AM_ABI_H
#define AM_ABI_H

#include <linux/types.h>

#define AM_RANGES 8 /* port ranges of one address or prefix; more are an error when encoding */
#define AM_NESTING 8 /* prefixes around one address that are tried, longest first; more are an error when encoding */
#define AM_COMM_LEN 16
#define AM_PREFIX_BASE 64 /* bits of policy_id, proto and padding in front of the address of a trie key */
#define AM_LEVELS 16 /* ancestor levels that are walked for a bottle in an attached cgroup */
#define AM_VOUCHES 4 /* destinations that one socket is vouched for at a time; the oldest gives way */
#define AM_STACK_WORDS 96 /* 8-byte words of the user stack kept as evidence */
#define AM_PATH_LEN 108 /* sizeof(sockaddr_un.sun_path) */

/* struct am_bottle.mode */
#define AM_MODE_CLOSED 0
#define AM_MODE_ENFORCE 1
#define AM_MODE_OBSERVE 2
#define AM_MODE_CUT 3

/* struct am_bottle.flags: lets a policy without them pay nothing for what it does not use */
#define AM_BOTTLE_DENY 1
#define AM_BOTTLE_PREFIX 2
#define AM_BOTTLE_GUARD 4 /* guarded processes are asked for vouching: reported */
#define AM_BOTTLE_STRICT 8 /* with AM_BOTTLE_GUARD: refused too */
#define AM_BOTTLE_LISTEN 16 /* listening only on the ports of am_listen */
#define AM_BOTTLE_UNIX 32 /* unix sockets by path only below the prefixes of am_unix */
#define AM_BOTTLE_ATTACHED 64 /* a cgroup that others made: there may be another bottle inside it */
#define AM_BOTTLE_NO_HOST 128 /* no port ranges of single addresses: am_host is not asked */

/* setsockopt(2) of the guard on any socket: level and options, swallowed by the kernel programs inside a bottle whose
 * policy has AM_BOTTLE_GUARD; anywhere else the kernel answers ENOPROTOOPT. */
#define AM_SOL 24941 /* 0x616d, "am": no protocol has this level */
#define AM_SO_REGISTER 1 /* struct am_register: this process is guarded until it execs */
#define AM_SO_UNREGISTER 2 /* struct am_register with the same token */
#define AM_SO_VOUCH 3 /* struct am_vouch: this socket may go to this destination */

/* struct am_exact_value.flags */
#define AM_EXACT_SERVICE 1 /* decided before deny rules and protected destinations */
#define AM_EXACT_SURVIVES_CUT 2
#define AM_EXACT_UNVOUCHED 4 /* needs no vouching: the bottle's resolver, which libc asks by itself */

/* struct am_config.flags */
#define AM_CONFIG_LOG_ALLOWED 1
#define AM_CONFIG_ATTACHED 2 /* bottles may be at any level: walk the ancestors when there is none at bottle_level */

/* struct am_event.kind */
#define AM_KIND_CONNECT 0
#define AM_KIND_SEND 1
#define AM_KIND_SOCKET 2
#define AM_KIND_ESCAPE 3
#define AM_KIND_BYPASS 4 /* by a guarded process whose guard did not vouch for it */

/* struct am_event.verdict */
#define AM_VERDICT_ALLOWED 0
#define AM_VERDICT_REFUSED 1
#define AM_VERDICT_OBSERVED 2 /* would have been refused; mode OBSERVE let it pass */

/* struct am_event.reason */
#define AM_REASON_DEFAULT 0 /* no rule speaks of it */
#define AM_REASON_DENY 1
#define AM_REASON_CUT 2
#define AM_REASON_CLOSED 3
#define AM_REASON_PROTECTED 4 /* a destination that no policy can open */
#define AM_REASON_FAMILY 5 /* a kind of socket that carries neither TCP nor UDP */
#define AM_REASON_EXPIRED 6 /* a learned address after its time */
#define AM_REASON_NETNS 7 /* a socket of a namespace that is not the bottle's */
#define AM_REASON_UNKNOWN 8 /* below the parent cgroup, but in no known bottle */
#define AM_REASON_RULE 9 /* an allow rule, `rule` says which */
#define AM_REASON_SERVICE 10
#define AM_REASON_LOOPBACK 11 /* the bottle's own loopback */
#define AM_REASON_UNVOUCHED 12 /* the policy allows it, but the guard of the process did not see it */
#define AM_REASON_LISTEN 13 /* binding to a port that the policy does not let it listen on */
#define AM_REASON_UNIX 14 /* a unix socket outside the paths of the policy */

/* struct am_event.origin */
#define AM_ORIGIN_NONE 0
#define AM_ORIGIN_FOLLOWS 1 /* a struct am_origin with the same ts_ns and pid is in the ring am_origins */

/* struct am_origin.task: what kind of thread made the call */
#define AM_TASK_USER 0
#define AM_TASK_IO_WORKER 1 /* a worker or poller thread of io_uring: it has no user stack */

/* struct am_config.features: programs that this kernel took besides the required ones */
#define AM_FEATURE_VOUCH 1 /* setsockopt, and following fork, exec and exit */
#define AM_FEATURE_ORIGIN 2 /* attribution */
#define AM_FEATURE_UNIX 4 /* unix connect and sendmsg, v6.7 */
#define AM_FEATURE_LSM 8 /* security hooks */

/* Indexes of am_lost */
#define AM_LOST_EVENT 0 /* events that the ring could not take */
#define AM_LOST_ORIGIN 1 /* origins that the other ring could not take */
#define AM_LOST_GUARDED 2 /* children of guarded processes that am_guarded had no room for */

/* am_config[0]. Written by the loader before the first attach, read by every program.
 * Example: bottles are /agentmon/b16 … → bottle_level 2. */
struct am_config {
	__u64 program_hash; /* first 8 bytes of the SHA-256 of the attached programs' text */
	__u32 bottle_level; /* depth below the root of the v2 hierarchy of a bottle's cgroup */
	__u32 flags; /* AM_CONFIG_* */
	__u64 features; /* AM_FEATURE_*: optional programs that are in force; for user space */
};

/* Value of am_bottle; the key is the id (inode) of the bottle's cgroup as a __u64. 32 bytes.
 * Example: cgroup 4711, slot 16, policy 9, epoch 3, ENFORCE. */
struct am_bottle {
	__u64 cgroup_id; /* the key again: tells a reader that the element was not re-used under it */
	__u64 netns_cookie; /* 0: not checked */
	__u32 slot;
	__u32 policy_id; /* first part of every key in am_exact, am_host, am_prefix, am_deny */
	__u32 epoch;
	__u8 mode; /* AM_MODE_* */
	__u8 flags; /* AM_BOTTLE_* */
	__u16 pad0;
};

/* Key of am_exact: one address and port. 24 bytes.
 * Example: policy 9, TCP 198.51.100.7:443 → 09000000 bb01 06 00 00*10 ffff c6336407 (little endian host). */
struct am_exact_key {
	__u32 policy_id;
	__u16 port;
	__u8 proto; /* IPPROTO_TCP 6, IPPROTO_UDP 17 */
	__u8 pad0;
	__u8 addr[16];
};

/* Value of am_exact. 16 bytes. */
struct am_exact_value {
	__u64 expires_ns; /* CLOCK_BOOTTIME; 0: for ever */
	__u32 rule; /* index among the policy's rules */
	__u32 flags; /* AM_EXACT_* */
};

/* Key of am_host: one address, its port ranges in the value. 24 bytes. */
struct am_host_key {
	__u32 policy_id;
	__u8 proto;
	__u8 pad0[3];
	__u8 addr[16];
};

/* Key of am_prefix and am_deny. 28 bytes. prefixlen counts from policy_id: AM_PREFIX_BASE + bits of the address,
 * where an IPv4 prefix has 96 bits more. Example: 10.0.0.0/8 → prefixlen 64 + 96 + 8 = 168. */
struct am_prefix_key {
	__u32 prefixlen;
	__u32 policy_id;
	__u8 proto;
	__u8 pad0[3];
	__u8 addr[16];
};

/* Ports lo…hi, both included. 16 bytes. Example: 8000-8100 for ever, rule 2 → lo 8000, hi 8100, rule 2, expires_ns 0. */
struct am_range {
	__u16 lo;
	__u16 hi;
	__u32 rule;
	__u64 expires_ns;
};

/* Value of am_host, am_prefix and am_deny. 136 bytes. A trie finds only the longest prefix; `shorter` is the prefixlen
 * of the next one around it (0: none), so that a rule on 10.0.0.0/8 still counts below a rule on 10.1.0.0/16. */
struct am_ranges {
	__u32 count; /* of range[], from the front */
	__u32 shorter;
	struct am_range range[AM_RANGES];
};

/* Key of am_listen: what may be listened on, its port ranges in a struct am_ranges. 8 bytes. */
struct am_listen_key {
	__u32 policy_id;
	__u8 proto;
	__u8 pad0[3];
};

/* Key of am_unix, a trie over bytes. prefixlen counts bits from policy_id: 32 + 8 per byte of the path.
 * Example: /run/app/ → prefixlen 32 + 8 * 9. 116 bytes. */
struct am_unix_key {
	__u32 prefixlen;
	__u32 policy_id;
	__u8 path[AM_PATH_LEN];
};

/* Value of am_unix. 8 bytes. */
struct am_unix_value {
	__u32 rule;
	__u16 bytes; /* of the key's path: a shorter one does not match, whatever stands behind it */
	__u8 exact; /* 1: nor does a longer one */
	__u8 own; /* 1: a private place of the bottle, open in CUT too */
};

/* Value of the option AM_SO_REGISTER. 8 bytes. */
struct am_register {
	__u64 token; /* chosen by the guard; unregistering needs it */
};

/* Value of the option AM_SO_VOUCH: the destination as connect(2) or sendto(2) will name it. 24 bytes.
 * Example: TCP 198.51.100.7:443 → 00*10 ffff c6336407 bb01 06 00 00000000 (little endian host). */
struct am_vouch {
	__u8 addr[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u16 port; /* host order */
	__u8 proto; /* IPPROTO_TCP 6 (MPTCP too), IPPROTO_UDP 17 */
	__u8 pad0;
	__u32 pad1;
};

/* Value of am_vouched, the storage of a socket. 104 bytes. */
struct am_vouches {
	__u32 next; /* slot that the next vouch takes */
	__u32 pad0;
	struct am_vouch vouch[AM_VOUCHES];
};

/* Value of am_guarded; the key is the process (tgid) as a __u32. 24 bytes. */
struct am_guarded {
	__u64 token;
	__u64 since_ns; /* CLOCK_BOOTTIME */
	__u32 slot; /* of the bottle it registered in */
	__u32 pad0;
};

/* Value of am_pending, per CPU: what the decision leaves for the attribution that runs after it. 128 bytes. */
struct am_pending {
	__u64 ts_ns; /* 0: nothing */
	__u64 pid_tgid; /* of whom; another task in between makes it stale */
	__u8 path[AM_PATH_LEN]; /* of a unix socket, or empty */
	__u32 path_len;
};

/* Record of the ring am_origins: where an operation came from. 928 bytes.
 * Example: ts_ns and pid of an event, nr 42 (connect), ip inside libc, stack words with addresses inside a library. */
struct am_origin {
	__u64 ts_ns; /* the event's */
	__u32 pid; /* thread */
	__u32 tgid;
	__u64 nr; /* system call number as the machine has it; all ones: none */
	__u64 ip; /* user instruction pointer */
	__u64 sp; /* user stack pointer; word[0] stands there */
	__u32 words; /* of word[] that could be read */
	__u8 task; /* AM_TASK_* */
	__u8 compat; /* 1: a 32-bit system call */
	__u16 path_len;
	__u8 path[AM_PATH_LEN];
	__u32 pad0;
	__u64 word[AM_STACK_WORDS];
};

/* Key of am_seen: what makes two operations "the same" for the event log. 32 bytes. */
struct am_seen_key {
	__u32 slot;
	__u32 tgid;
	__u16 port;
	__u8 proto;
	__u8 kind;
	__u8 verdict;
	__u8 reason;
	__u16 pad0;
	__u8 addr[16];
};

/* Record of the ring am_events, and value of am_seen, where count is the repeats not yet reported. 88 bytes.
 * Example: curl (pid 812) of slot 16 refused at TCP 203.0.113.9:443. */
struct am_event {
	__u64 ts_ns; /* CLOCK_BOOTTIME */
	__u64 cgroup_id; /* of the bottle; 0 when unknown */
	__u32 slot; /* 0 when unknown */
	__u32 epoch;
	__u32 pid; /* thread */
	__u32 tgid; /* process */
	__u32 uid;
	__u32 rule;
	__u32 count;
	__u16 port;
	__u8 proto;
	__u8 kind; /* AM_KIND_* */
	__u8 verdict;
	__u8 reason; /* AM_REASON_* */
	__u8 family; /* AF_INET 2, AF_INET6 10, AF_UNIX 1; of the address as decided */
	__u8 socktype; /* SOCK_* */
	__u8 origin; /* AM_ORIGIN_* */
	__u8 guarded; /* 1: the process had registered */
	__u16 pad0;
	__u8 addr[16];
	__u8 comm[AM_COMM_LEN];
};

#endif
