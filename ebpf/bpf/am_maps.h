/* SPDX-License-Identifier: GPL-2.0 */
/* Every map, declared once. AM_PINS is the directory of this layout's pins: a map found there is used as it is.
 *
 * Deciding maps are plain hashes and tries: when one is full the writer gets an error and the kernel goes on
 * refusing. am_seen alone is LRU, and decides nothing.
 */
#ifndef AM_MAPS_H
#define AM_MAPS_H

#include "am_abi.h"

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define AM_MAP(kind, name, key, value, max, flags)                                                                     \
	BPF_TABLE_PINNED(kind, key, value, name, max, AM_PINS "/" #name, flags)

/* 0 → struct am_config. Writer: loader. Reader: every program. */
AM_MAP("array", am_config, __u32, struct am_config, 1, 0);

/* cgroup id → struct am_bottle. Writer: CgroupPrograms.apply, set_mode. Reader: every program. Limit: AM_MAX_BOTTLES. */
AM_MAP("hash", am_bottle, __u64, struct am_bottle, AM_MAX_BOTTLES, 0);

/* Single ports of single addresses. Writer: apply, learn. Reader: am_verdict.h. Limit: AM_MAX_EXACT over all bottles. */
AM_MAP("hash", am_exact, struct am_exact_key, struct am_exact_value, AM_MAX_EXACT, BPF_F_NO_PREALLOC);

/* Port ranges of single addresses. Writer: apply, learn. Reader: am_verdict.h, unless AM_BOTTLE_NO_HOST.
 * Limit: AM_MAX_HOST. */
AM_MAP("hash", am_host, struct am_host_key, struct am_ranges, AM_MAX_HOST, BPF_F_NO_PREALLOC);

/* Port ranges of networks. Writer: apply. Reader: am_verdict.h, only for bottles with AM_BOTTLE_PREFIX. */
AM_MAP("lpm_trie", am_prefix, struct am_prefix_key, struct am_ranges, AM_MAX_PREFIX, BPF_F_NO_PREALLOC);

/* The same for deny rules, single addresses included. Read only for bottles with AM_BOTTLE_DENY. */
AM_MAP("lpm_trie", am_deny, struct am_prefix_key, struct am_ranges, AM_MAX_PREFIX, BPF_F_NO_PREALLOC);

/* Operations already reported and not yet flushed → their event, counting repeats. Writer: am_report.h.
 * Reader and eraser: CgroupPrograms.read. Not deciding: an evicted element costs one more event. */
AM_MAP("lru_hash", am_seen, struct am_seen_key, struct am_event, AM_MAX_SEEN, 0);

/* policy, protocol → ports that may be listened on. Writer: apply. Reader: am_socket.h, only with AM_BOTTLE_LISTEN. */
AM_MAP("hash", am_listen, struct am_listen_key, struct am_ranges, AM_MAX_LISTEN, BPF_F_NO_PREALLOC);

/* policy, path prefix → unix sockets that may be connected to. Writer: apply. Reader: am_unix.h, only with
 * AM_BOTTLE_UNIX. */
AM_MAP("lpm_trie", am_unix, struct am_unix_key, struct am_unix_value, AM_MAX_UNIX, BPF_F_NO_PREALLOC);

/* process (tgid) → that it registered as guarded. Writers: am_vouch.h, am_process.h (fork, exec, exit). Reader:
 * am_vouch.h. When it is full registering fails, and the guard knows. */
AM_MAP("hash", am_guarded, __u32, struct am_guarded, AM_MAX_GUARDED, BPF_F_NO_PREALLOC);

/* AM_LOST_* → how many, per CPU. Writers: am_report.h, am_origin.h, am_process.h. Reader: CgroupPrograms.lost. */
AM_MAP("percpu_array", am_lost, __u32, __u64, 3, 0);

/* 0 → what a decision leaves for the attribution that runs right after it. Writer: am_report.h. Reader: am_origin.h. */
AM_MAP("percpu_array", am_pending, __u32, struct am_pending, 1, 0);

/* socket → what it is vouched for; goes with the socket. Writer: am_vouch.h. Reader: am_vouch.h. bcc has no macro for
 * pinned socket storage; this is its BPF_SK_STORAGE with a path. */
struct am_vouched_table_t {
	int key;
	struct am_vouches leaf;
	void *(*sk_storage_get)(void *, void *, int);
	int (*sk_storage_delete)(void *);
	__u32 flags;
};
__attribute__((section("maps/sk_storage:" AM_PINS "/am_vouched"))) struct am_vouched_table_t am_vouched = {
	.flags = BPF_F_NO_PREALLOC,
};
BPF_ANNOTATE_KV_PAIR(am_vouched, int, struct am_vouches);

/* Rings. Writers: am_report.h, am_origin.h. Reader: ebpf/ring.py. Limits: bytes, a power of two and a multiple of the
 * page size. bcc has no macro for a pinned ring; this is its BPF_RINGBUF_OUTPUT with a path. */
#define AM_RING(name, bytes)                                                                                           \
	struct name##_table_t {                                                                                        \
		int key;                                                                                               \
		__u32 leaf;                                                                                            \
		int (*ringbuf_output)(void *, u64, u64);                                                               \
		void *(*ringbuf_reserve)(u64);                                                                         \
		void (*ringbuf_discard)(void *, u64);                                                                  \
		void (*ringbuf_submit)(void *, u64);                                                                   \
		__u32 max_entries;                                                                                     \
	};                                                                                                             \
	__attribute__((section("maps/ringbuf:" AM_PINS "/" #name))) struct name##_table_t name = {                     \
		.max_entries = bytes,                                                                                  \
	}

/* struct am_event records. */
AM_RING(am_events, AM_RING_BYTES);

/* struct am_origin records: first occurrences only. */
AM_RING(am_origins, AM_ORIGIN_BYTES);

#endif
