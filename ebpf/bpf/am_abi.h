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

/* struct am_bottle.mode */
#define AM_MODE_CLOSED 0
#define AM_MODE_ENFORCE 1
#define AM_MODE_OBSERVE 2
#define AM_MODE_CUT 3

/* struct am_bottle.flags: lets a policy without them pay nothing for the tries */
#define AM_BOTTLE_DENY 1
#define AM_BOTTLE_PREFIX 2

/* struct am_exact_value.flags */
#define AM_EXACT_SERVICE 1 /* decided before deny rules and protected destinations */
#define AM_EXACT_SURVIVES_CUT 2

/* struct am_config.flags */
#define AM_CONFIG_LOG_ALLOWED 1

/* struct am_event.kind */
#define AM_KIND_CONNECT 0
#define AM_KIND_SEND 1
#define AM_KIND_SOCKET 2
#define AM_KIND_ESCAPE 3

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

/* am_config[0]. Written by the loader before the first attach, read by every program.
 * Example: bottles are /agentmon/b16 … → bottle_level 2. */
struct am_config {
	__u64 program_hash; /* first 8 bytes of the SHA-256 of the attached programs' text */
	__u32 bottle_level; /* depth below the root of the v2 hierarchy of a bottle's cgroup */
	__u32 flags; /* AM_CONFIG_* */
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
	__u8 family; /* AF_INET 2, AF_INET6 10; of the address as decided */
	__u8 socktype; /* SOCK_* */
	__u32 pad0;
	__u8 addr[16];
	__u8 comm[AM_COMM_LEN];
};

#endif
